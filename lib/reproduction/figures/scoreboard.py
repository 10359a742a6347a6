"""The claims of the paper at a glance."""

import textwrap
from typing import Any

from neural_ode.errors import needs
from reproduction.rules import Verdict

with needs("notebooks"):
    import matplotlib.pyplot as plt
    import pandas as pd
    import seaborn as sns
    from matplotlib.figure import Figure

__all__ = ["draw_scoreboard"]

_PALETTE = sns.color_palette("colorblind").as_hex()
COLORS = {
    Verdict.HOLDS: _PALETTE[2],
    Verdict.FAILS: _PALETTE[3],
    Verdict.UNDECIDED: _PALETTE[1],
    Verdict.UNTESTED: "0.55",
}
LINE = 0.27  # inches
CLAIM, MEASURED, SOURCE = 0.026, 0.33, 0.79
"""Where the columns begin, as a share of the width."""
LONGEST = 78
"""Characters of a measurement; one in several ways begins with the first of them."""


def draw_scoreboard(table: pd.DataFrame, title: str) -> Figure:
    """Draw a matrix of claims: verdict, claim in a few words, what was measured, where the claim stands.

    Args:
        table: columns `short`, `here`, `whose`, `source`, `verdict` and `notebook`, one row a claim, in order.
        title: of the figure.
    """
    groups = [(name, rows) for name, rows in table.groupby(["whose", "notebook"], sort=False)]
    total = len(table) + 0.6 * len(groups)
    figure, axes = plt.subplots(figsize=(13, LINE * (total + 4)))
    axes.set(xlim=(0, 1), ylim=(total + 1.6, -1.4))
    axes.axis("off")
    axes.set_title(title, loc="left")
    for x, heading in ((CLAIM, "claim"), (MEASURED, "measured here, with 95 % interval"), (SOURCE, "where it stands")):
        axes.text(x, -0.7, heading, va="center", size=9, color="0.35", weight="bold")
    top = 0.0
    bold: dict[str, Any] = {"va": "center", "size": 13, "weight": "bold"}
    for (whose, _), rows in groups:
        axes.plot([0, 1], [top + 0.1] * 2, color="0.75", lw=0.8)
        top += 0.6 if top else 0.3
        for row in rows.itertuples(index=False):
            verdict = Verdict(row.verdict)
            middle = top + 0.5
            axes.text(0.010, middle, verdict.sign, color=COLORS[verdict], ha="center", **bold)
            style = "normal" if whose == "paper" else "italic"
            axes.text(CLAIM, middle, row.short, va="center", size=9.5, style=style)
            axes.text(MEASURED, middle, textwrap.shorten(row.here, LONGEST, placeholder=" …"), va="center", size=8.5)
            axes.text(SOURCE, middle, row.source.partition(";")[0], va="center", size=8.5, color="0.35")
            top += 1
    legend = [f"{verdict.sign} {verdict}: {(table['verdict'] == str(verdict)).sum()}" for verdict in Verdict]
    legend.append("italic: not the paper's claim")
    axes.text(0.005, top + 0.9, "     ".join(legend), va="center", size=10)
    return figure
