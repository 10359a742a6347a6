"""Draw everything anew from the results that are there, and say what differs from what was drawn before.

    python -m reproduction.pipeline.redraw --profile paper --check

Runs the notebooks of a profile, all or those that are named, without computing anything, the scoreboard last, and
then writes RESULTS.md, figures/README.md and the parts of the README. With `--check` a difference is a failure: in
a claim's verdict or measurement, in a metric, in what an executed notebook says in words and tables.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any

from neural_ode.errors import InvalidArgumentError, NeuralODEError, UnknownNameError
from reproduction.claims import decide, describe, load_claims
from reproduction.files import read_json
from reproduction.pipeline import identity, readme
from reproduction.pipeline.alone import stop_with_parent
from reproduction.pipeline.board import PROFILE
from reproduction.pipeline.command import exit_status
from reproduction.pipeline.notebooks import read_notebook
from reproduction.workspace import checked_profile, project_root

__all__ = ["differences", "main", "redraw"]

SCOREBOARD = "11_scoreboard"
LEAD, LENGTH = 40, 120
"""How much of a text is quoted: characters before the first one that differs, and in all."""

IDENTITY = ".identity"


class RedrawError(NeuralODEError):
    """A notebook failed, or what was drawn is not what was there."""


def redraw(root: Path, profile: str, jobs: int, only: Sequence[str] = ()) -> list[str]:
    """Draw notebooks of a profile, several at a time, and the scoreboard.

    Args:
        root: of the project.
        profile: whose results.
        jobs: notebooks at a time.
        only: names of notebooks; all if there is none.

    Returns:
        What differs from before, in words.

    Raises:
        UnknownNameError: there is no such notebook.
        RedrawError: notebooks failed; the others are drawn.
    """
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    there = [path.stem for path in notebooks]
    for name in only:
        if name not in there:
            raise UnknownNameError("notebook", name, there)
    if identity.main([str(root / IDENTITY), *map(str, notebooks)]):
        raise RedrawError("a notebook or module cannot be read: its name stands above")
    names = [name for name in there if not only or name in (*only, SCOREBOARD)]
    folder = root / "figures" / checked_profile(profile)
    before = {name: _shown(folder / name, profile) for name in names}
    with ThreadPoolExecutor(jobs) as pool:
        drawn = [name for name in names if name != SCOREBOARD]
        codes = pool.map(lambda name: _run(root, name, profile), drawn)
        failed = [name for name, code in zip(drawn, codes, strict=True) if code]
    if failed:
        raise RedrawError(f"not drawn: {', '.join(failed)}; what they said stands above")
    if _run(root, SCOREBOARD, profile):
        raise RedrawError(f"not drawn: {SCOREBOARD}; what it said stands above")
    after = {name: _shown(folder / name, profile) for name in names}
    return [line for name in names for line in differences(name, before[name], after[name])]


def _run(root: Path, name: str, profile: str) -> int:
    """Run one notebook in a process of its own; its exit status."""
    started = time.monotonic()
    command = [sys.executable, "-m", "reproduction.pipeline.run", f"{IDENTITY}/{name}.ipynb"]
    done = subprocess.run([*command, f"--profile={profile}"], cwd=root, capture_output=True, text=True)
    print(f"{name}: {'failed' if done.returncode else 'drawn'} in {time.monotonic() - started:.0f} s", flush=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr, flush=True)
    return done.returncode


def _shown(folder: Path, profile: str) -> dict[str, str]:
    """What a notebook says, by what it says it of: claims, metrics, and the text of its cells."""
    found: dict[str, str] = {}
    remedy = "run the notebook again"
    if (folder / "claims.json").exists() and folder.name != SCOREBOARD:
        known = load_claims()
        for id, measurement in read_json(folder / "claims.json", remedy).items():
            if id in known:
                try:
                    said = f"{decide(known[id], measurement, profile)}: {describe(known[id], measurement)}"
                except InvalidArgumentError:  # of a rule that asked for something else
                    said = f"measured for another rule: {measurement}"
                found[f"claim {id}"] = said
    if (folder / "metrics.json").exists():
        for name, value in read_json(folder / "metrics.json", remedy).items():
            found[f"metric {name}"] = f"{value:.3g}"
    if (folder / f"{folder.name}.ipynb").exists():
        for cell in read_notebook(folder / f"{folder.name}.ipynb", remedy).cells:
            found[f"cell {cell.id}"] = "\n".join(_texts(cell.get("outputs", [])))
    return found


def _texts(outputs: Iterable[Any]) -> Iterator[str]:
    """What is text in outputs: printed, or a table."""
    for output in outputs:
        data = output.get("data", {})
        plain = "" if any(kind.startswith("image/") for kind in data) else data.get("text/plain", "")
        yield output.get("text", "") or data.get("text/html", "") or data.get("text/markdown", "") or plain


def differences(notebook: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What a notebook says otherwise than before, a line each; one line if it said nothing before."""
    if not before:
        return [f"{notebook}: there was nothing to compare with"]
    lines = []
    for what in dict.fromkeys([*before, *after]):
        old, new = (re.sub(r"<[^>]*>|\s+", " ", text.get(what, "nothing")) for text in (before, after))
        if before.get(what) != after.get(what):
            # Of a long text, the place where it begins to differ.
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
            start = max(0, same - LEAD)
            lines.append(f"{notebook}, {what}: was {_quoted(old, start)}, is {_quoted(new, start)}")
    return lines


def _quoted(text: str, start: int) -> str:
    shown = " ".join(text[start : start + LENGTH].split())
    return f"'{'…' if start else ''}{shown}{'…' if len(text) > start + LENGTH else ''}'"


def main(arguments: list[str] | None = None) -> int:
    """Draw what the command line names; the exit status."""
    parser = argparse.ArgumentParser(description="Draw all figures anew from the results that are there.")
    parser.add_argument("only", nargs="*", metavar="NOTEBOOK", help="all if none is named")
    parser.add_argument("--profile", default="paper", help="whose results")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time")
    parser.add_argument("--check", action="store_true", help="fail if anything differs from before")
    options = parser.parse_args(arguments)

    def work() -> None:
        root, started = project_root(), time.monotonic()
        found = redraw(root, options.profile, options.jobs, options.only)
        if options.profile == PROFILE:
            found += readme.write(root)
        print("\n".join(found))
        which, seconds = "named" if options.only else "all", time.monotonic() - started
        print(f"{which} notebooks of {options.profile} drawn in {seconds:.0f} s: ", end="")
        print(f"{len(found)} differences" if found else "claims, metrics, tables and text as before")
        if found and options.check:
            raise RedrawError("the committed results are not what the code draws: see above")

    return exit_status(work)


if __name__ == "__main__":
    stop_with_parent()
    sys.exit(main())
