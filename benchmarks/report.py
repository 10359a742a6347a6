"""The results as a file and as figures."""

import importlib.metadata
import io
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from benchmarks.cases import CASES
from benchmarks.problems import PROBLEMS
from benchmarks.scaling import AXES, slopes
from reproduction.files import read_json, replace_between, replacing, write_atomically

__all__ = [
    "case_table",
    "draw_precision",
    "draw_scaling",
    "duration",
    "goal_table",
    "goals_text",
    "load",
    "machine",
    "merge",
    "ratios_table",
    "save",
    "save_png",
    "slopes_table",
    "times",
    "update_readmes",
]

_PACKAGES = ("neural-ode", "torch", "torchdiffeq", "torchode", "jax", "jaxlib", "diffrax", "scipy", "numpy")
_KEYS = {"rows": "case", "goals": "case", "work_precision": "problem", "scaling": "axis"}

_PALETTE = sns.color_palette("colorblind").as_hex()
_LIBRARIES = {
    "neural_ode": (_PALETTE[0], "-"),
    "neural_ode, compiled": (_PALETTE[2], "-"),
    "torchdiffeq": (_PALETTE[3], "--"),
    "diffrax": (_PALETTE[1], "-."),
    "torchode": (_PALETTE[4], ":"),
    "SciPy": (_PALETTE[7], "--"),
}
_METHODS = {
    "dopri5": "o",
    "tsit5": "s",
    "dopri8": "D",
    "bosh3": "^",
    "adams": "v",
    "RK45": "X",
    "DOP853": "P",
    "LSODA": "*",
}


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code: processor and versions. No names of hosts or folders."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        FileError: the file is missing or damaged.
    """
    return read_json(path, "restore it, or delete it and run `python -m benchmarks`")


def save(path: Path, results: dict[str, Any]) -> None:
    """Write the results, one row a line, so that versions of the file can be compared."""
    parts = []
    for key, value in results.items():
        if key in _KEYS:
            lines = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in _rounded(value))
            parts.append(f'  "{key}": [\n{lines}\n  ]')
        else:
            parts.append(f'  "{key}": {json.dumps(value, ensure_ascii=False)}')
    write_atomically(path, "{\n" + ",\n".join(parts) + "\n}\n")


def _rounded(value: Any) -> Any:
    """Four significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    if isinstance(value, dict):
        return {key: _rounded(x) for key, x in value.items()}
    return value


def merge(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Replace what was measured again, with the same number of threads.

    Results of another machine or of other versions are dropped: they cannot stand in one table.
    """
    if old is None or old["machine"] != new["machine"] or old["quick"] != new["quick"]:
        return new
    merged = dict(new)
    for key, by in _KEYS.items():
        again = {(row[by], row["threads"]) for row in new[key]}
        kept = [row for row in old[key] if (row[by], row["threads"]) not in again]
        order = [*CASES, *PROBLEMS, *AXES]
        merged[key] = sorted(kept + new[key], key=lambda row: (row["threads"], order.index(row[by])))
    return merged


def case_table(results: dict[str, Any], case: str, threads: int) -> pd.DataFrame:
    """Who took how long."""
    table = {}
    for row in _select(results["rows"], threads, case=case):
        if "skipped" in row:
            table[row["contender"]] = {"remark": row["skipped"]}
            continue
        low, high = row["ratio"][1:] if "ratio" in row else (None, None)
        table[row["contender"]] = {
            "median (ms)": 1e3 * row["median"],
            "quartiles (ms)": f"{1e3 * row['q1']:.3g} – {1e3 * row['q3']:.3g}",
            f"times as fast as {CASES[case].baseline}": row["ratio"][0] if "ratio" in row else None,
            "95 % interval": f"{low:.3g} – {high:.3g}" if low is not None else None,
            "NFE": "–" if row["nfe"] is None else f"{row['nfe']}",
            "first call (s)": row["first_call"],
            "remark": "",
        }
    return pd.DataFrame.from_dict(table, orient="index").fillna({"remark": ""})


def goal_table(results: dict[str, Any], threads: int) -> pd.DataFrame:
    """Every goal, what was measured, and the verdict."""
    table = []
    for goal in _select(results["goals"], threads):
        sign = "≥" if goal["kind"] == "speedup" else "≤"
        unit = " s" if goal["kind"] == "difference" else ""
        row = {"case": goal["case"], "goal": goal["goal"], "bound": f"{sign} {goal['bound']:g}{unit}"}
        if "measured" in goal:
            estimate, low, high = goal["measured"]
            row |= {
                "measured": f"{estimate:.3g}{unit}",
                "95 % interval": f"{low:.3g} – {high:.3g}",
                "of": goal["of"],
            }
        else:
            row |= {"measured": "–", "95 % interval": "–", "of": f"missing: {goal['missing']}"}
        table.append(row | {"verdict": goal["verdict"]})
    return pd.DataFrame(table).set_index("case")


_COLUMNS = {
    "neural_ode": ("neural_ode", "neural_ode, per sample"),
    "compiled": ("neural_ode, compiled", "neural_ode, per sample, compiled"),
    "recursive_checkpoint, compiled": ("recursive_checkpoint, compiled",),
    "diffrax": ("diffrax", "diffrax, per sample"),
    "torchode": ("torchode, compiled", "torchode, TorchScript", "torchode"),
    "SciPy": ("SciPy",),
}
"""Columns of the table and the contenders that they stand for: the second of two where steps for each
sample are the subject, and of three the fastest."""

_MARKS = ("<!-- made by python -m benchmarks -->\n", "<!-- end -->")


_FRONT = {
    "forward": "network of 50 hidden units, 50 output times",
    "gradient-backsolve": "its gradients, adjoint method",
    "cnf": "continuous flow, adjoint method",
    "per-sample": "Van der Pol, steps for each sample",
}
"""Cases of the first page, with short names."""

_FRONT_COLUMNS = ("neural_ode", "compiled", "diffrax", "torchode")


def ratios_table(
    results: dict[str, Any],
    threads: int = 1,
    cases: Mapping[str, str] | None = None,
    columns: Sequence[str] = tuple(_COLUMNS),
) -> str:
    """How many times as fast as torchdiffeq, in Markdown.

    Args:
        results: see `load`.
        threads: of these measurements.
        cases: names of cases, and what to call them; by default all by their titles.
        columns: names in `_COLUMNS`.
    """
    lines = [
        "| work, {} thread{}; × times as fast | torchdiffeq | {} |".format(
            threads, "s" * (threads > 1), " | ".join(columns)
        ),
        "|---" * (2 + len(columns)) + "|",
    ]
    for name, title in (cases or {name: case.title for name, case in CASES.items()}).items():
        case = CASES[name]
        rows = {row["contender"]: row for row in _select(results["rows"], threads, case=name) if "ratio" in row}
        if case.baseline != "torchdiffeq" or case.baseline not in rows:
            continue
        cells = [duration(rows[case.baseline]["median"])]
        for names in (_COLUMNS[column] for column in columns):
            # Steps of their own for the samples are another thing than joint ones, however fast these are.
            own = names[-1:] if name.startswith("per-sample") and len(names) == 2 else names
            entered = [rows[one]["ratio"][0] for one in own if one in rows]
            cells.append(times(max(entered)) if entered else "–")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """In milliseconds below a second; three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def times(ratio: float) -> str:
    """How many times as fast, with two digits or more."""
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.2g}×"


def goals_text(results: dict[str, Any], threads: int = 1) -> str:
    """How many goals are met, and those that were missed, in Markdown."""
    goals = _select(results["goals"], threads)
    missed = [goal for goal in goals if goal["verdict"] != "met"]
    lines = [f"{len(goals) - len(missed)} of {len(goals)} goals are met" + (". Missed:\n" if missed else ".")]
    for goal in missed:
        measured = f"{goal['measured'][0]:.3g}" if "measured" in goal else goal["verdict"]
        lines.append(f"* {goal['case']}: {goal['goal']}; measured: {measured}")
    return "\n".join(lines) + "\n"


def slopes_table(results: dict[str, Any], threads: int = 1) -> str:
    """How the time of a solve grows with its work along each axis, in Markdown: the exponent of a power law."""
    rows = _select(results["scaling"], threads)
    found = slopes(rows)
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    lines = [f"| slope of log time over log work | {' | '.join(libraries)} |", "|---" * (1 + len(libraries)) + "|"]
    for axis in dict.fromkeys(row["axis"] for row in rows):
        cells = [f"{found[axis, name]:.2f}" if (axis, name) in found else "–" for name in libraries]
        *_, low, _, high = AXES[axis]
        lines.append(f"| {_AXIS_TITLES[axis]}, {low} to {high} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_AXIS_TITLES = {
    "batch": "states in a batch",
    "width": "units in a layer",
    "dimension": "numbers in a state",
    "length": "length of the interval",
}


def update_readmes(root: Path, results: dict[str, Any]) -> None:
    """Put the tables between their marks: all in benchmarks/README.md, a few rows in that of the project."""
    whole = f"{ratios_table(results)}\n{goals_text(results)}\n{slopes_table(results)}"
    replace_between(root / "benchmarks" / "README.md", *_MARKS, whole)
    replace_between(root / "README.md", *_MARKS, ratios_table(results, cases=_FRONT, columns=_FRONT_COLUMNS))


def _select(rows: Iterable[dict[str, Any]], threads: int, **values: Any) -> list[dict[str, Any]]:
    wanted = values | {"threads": threads}
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def draw_precision(results: dict[str, Any], threads: int) -> Figure:
    """Error against seconds and against evaluations, a pair of panels for each problem."""
    rows = [row for row in _select(results["work_precision"], threads) if "error" in row]
    names = [name for name in PROBLEMS if any(row["problem"] == name for row in rows)]
    blocks = -(-len(names) // 3)
    figure, axes = plt.subplots(2 * blocks, 3, figsize=(13, 7.5 * blocks + 1), squeeze=False)
    for panel in axes.flat:
        panel.set_visible(False)
    for k, name in enumerate(names):
        for i, (work, label) in enumerate((("seconds", "seconds"), ("nfe", "evaluations of f"))):
            panel = axes[2 * (k // 3) + i, k % 3]
            panel.set_visible(True)
            _draw_panel(panel, [row for row in rows if row["problem"] == name], work)
            panel.set(
                xlabel=label, ylabel="largest error", title=PROBLEMS[name](results["quick"]).title if i == 0 else ""
            )
    used = {key: [row[key] for row in rows] for key in ("library", "method")}
    handles = [
        *(Line2D([], [], color=c, ls=ls, label=n) for n, (c, ls) in _LIBRARIES.items() if n in used["library"]),
        *(
            Line2D([], [], color="0.3", ls="", marker=m, label=n)
            for n, m in _METHODS.items()
            if n in used["method"]
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=7)
    return figure


def draw_scaling(results: dict[str, Any], threads: int) -> Figure:
    """Seconds against size, a panel for each axis."""
    rows = [row for row in _select(results["scaling"], threads) if "seconds" in row]
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, panels = plt.subplots(1, len(axes), figsize=(3.3 * len(axes), 3.8), sharey=True, squeeze=False)
    for panel, axis in zip(panels[0], axes, strict=True):
        frame = pd.DataFrame([row for row in rows if row["axis"] == axis])
        for library, curve in frame.groupby("library", sort=False):
            color, style = _LIBRARIES[library]
            panel.plot(curve["size"], curve["seconds"], color=color, ls=style, marker="o", ms=4, label=library)
        panel.set(xscale="log", yscale="log", xlabel=_AXIS_TITLES[axis])
        panel.set_xticks(AXES[axis], [f"{size}" for size in AXES[axis]])
        panel.minorticks_off()
    panels[0, 0].set_ylabel("seconds")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Save with a palette, which takes a quarter of the bytes."""
    with replacing(path) as temporary, io.BytesIO() as raw:
        figure.savefig(raw, format="png", dpi=90)
        Image.open(raw).convert("RGB").quantize(64).save(temporary, format="png", optimize=True)


def _draw_panel(axes: Axes, rows: list[dict[str, Any]], work: str) -> None:
    frame = pd.DataFrame(rows)
    for (library, method), curve in frame.groupby(["library", "method"], sort=False):
        color, style = _LIBRARIES[library]
        x, y = curve[work].astype(float), curve["error"]
        axes.plot(x, y, color=color, ls=style, marker=_METHODS[method], ms=4, lw=1.2, alpha=0.85)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 200 * low else (1,)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
