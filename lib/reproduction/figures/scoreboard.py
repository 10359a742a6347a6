"""The claims of the paper at a glance."""

import textwrap


from reproduction.claims import Verdict

from neural_ode.errors import needs

with needs("notebooks"):
    import matplotlib.pyplot as plt
    import pandas as pd
    import seaborn as sns
    from matplotlib.figure import Figure

__all__ = ["draw_scoreboard"]

_PALETTE = sns.color_palette("colorblind").as_hex()
SIGNS = {
    Verdict.HOLDS: ("✓", _PALETTE[2]),
    Verdict.FAILS: ("✗", _PALETTE[3]),
    Verdict.UNDECIDED: ("?", _PALETTE[1]),
    Verdict.UNTESTED: ("·", "0.55"),
}
LINE = 0.2  # inches
WIDTH = 105  # characters


def draw_scoreboard(table: pd.DataFrame, title: str) -> Figure:
    """Draw a row for each claim: verdict, sentence, where it stands in the paper.

    Args:
        table: columns `claim`, `item` and `verdict`, one row a claim.
        title: of the figure.
    """
    wrapped = [textwrap.wrap(sentence, WIDTH) for sentence in table["claim"]]
    heights = [len(lines) + 0.5 for lines in wrapped]
    total = sum(heights)
    figure, axes = plt.subplots(figsize=(12, LINE * (total + 3)))
    axes.set(xlim=(0, 1), ylim=(total + 1.5, -0.2))
    axes.axis("off")
    axes.set_title(title, loc="left")
    top = 0.0
    for row, (lines, height) in enumerate(zip(wrapped, heights, strict=True)):
        sign, color = SIGNS[Verdict(table["verdict"].iloc[row])]
        middle = top + height / 2
        if row % 2 == 0:
            axes.axhspan(top, top + height, color="0.96", zorder=0)
        axes.text(0.012, middle, sign, color=color, va="center", ha="center", size=15, weight="bold")
        axes.text(0.03, middle, "\n".join(lines), va="center", size=9)
        axes.text(0.985, middle, table["item"].iloc[row], va="center", ha="right", size=8, color="0.35")
        top += height
    legend = [f"{sign} {verdict}: {(table['verdict'] == str(verdict)).sum()}" for verdict, (sign, _) in SIGNS.items()]
    axes.text(0.005, total + 0.9, "     ".join(legend), va="center", size=10)
    return figure
