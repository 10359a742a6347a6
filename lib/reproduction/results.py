"""The results of an experiment, run by run: read where they fit, made where they do not.

    runs = work.store.obtain(train, {"ODE-Net-0": {"name": "ODE-Net", "seed": 0}}, label="networks")
    runs["ODE-Net-0"].load(model)

A *run* is one training or one measurement: some files that begin with its name, and a record in `provenance.json`
beside them. The record says with which settings and by which code the files were made, so a further seed makes the
runs of that seed and no other, an interrupted computation goes on, and nothing that was made otherwise passes for a
result. Code counts by its meaning or, where it is the solver library's, by its behaviour: `reproduction.meaning`.
"""

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import neural_ode
from neural_ode.errors import FileError, InvalidArgumentError, needs
from reproduction.files import read_json, read_text, write_atomically
from reproduction.meaning import behaviour, meaning
from reproduction.sweep import Point, function_file, sweep
from reproduction.training.weights import load_weights

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Files", "MissingResultError", "Run", "Store", "csv_bytes", "json_bytes", "read_rows"]

Files = Mapping[str, bytes]
"""What a run leaves: content by suffix, such as `.safetensors`."""

RECORDS = "provenance.json"

SPECIAL = {"": None, "True": True, "False": False}
"""Fields of a table that are neither numbers nor text."""

NEVER, OTHER_CODE = "it was not made", "made by other code"


class MissingResultError(FileError, FileNotFoundError):
    """A result is not there, or was made in another way."""


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV, the names of all columns first; `None` is an empty field."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Raises ValueError for NaN and infinity, which JSON does not have."""
    return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def read_rows(file: Path, remedy: str) -> "pd.DataFrame":
    """A table that `csv_bytes` has written, numbers to their last digit.

    Raises:
        FileError: it is missing or damaged; the message ends in `remedy`.
    """
    with needs("notebooks"):
        import pandas as pd

    # Not by pandas, whose numbers are not exact in all versions.
    columns, *rows = list(csv.reader(io.StringIO(read_text(file, remedy)))) or [[]]
    if not columns or any(len(row) != len(columns) for row in rows):
        raise FileError(f"{file} is damaged (a line does not fit the names of the columns): {remedy}")
    return pd.DataFrame([map(_value, row) for row in rows], columns=columns)


def _value(text: str) -> Any:
    """What a field of a table holds."""
    if text in SPECIAL:
        return SPECIAL[text]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


@dataclass(frozen=True)
class Run:
    """The files of one run, as they were made.

    Attributes:
        folder: where they lie.
        name: what they begin with; may lead into a folder of its own.
        record: of `provenance.json`: `settings`, `code`, `files` with their checksums, `made`.
    """

    folder: Path
    name: str
    record: Mapping[str, Any]

    def file(self, suffix: str) -> Path:
        """Path of one file.

        Raises:
            MissingResultError: the run has none with that suffix.
            FileError: it is not the file that was made.
        """
        if suffix not in self.record["files"]:
            raise MissingResultError(f"{self.name} has no {suffix}: it has {', '.join(self.record['files'])}")
        path = self.folder / f"{self.name}{suffix}"
        if _checksum(path) != self.record["files"][suffix]:
            raise FileError(f"{path} is damaged or missing (its checksum differs): {_way_back(path)}")
        return path

    def identity(self, suffix: str) -> str:
        """Checksum of a file, for the settings of whatever is measured on it."""
        found: str = self.record["files"][suffix]
        return found

    def table(self) -> "pd.DataFrame":
        """The rows of the run's table, or of the history of its training."""
        path = self.file(".csv")
        return read_rows(path, _way_back(path))

    def values(self) -> dict[str, Any]:
        """What the run has left as JSON."""
        path = self.file(".json")
        return read_json(path, _way_back(path))

    def load(self, model: nn.Module) -> None:
        """Put the trained weights into a model, which is in eval mode then."""
        load_weights(model, self.file(".safetensors"))


@dataclass
class Store:
    """The results of one notebook in one profile.

    Attributes:
        folders: where they may lie, the first one first.
        target: where new ones go; `None` if nothing may be computed.
        checkpoints: of runs under way.
        way_out: what to do about a missing result, in words.
        workers: see `reproduction.sweep.sweep`.
        accepted: a reason to take files that are there for the results of the present settings and code.
        used: names of the runs that were asked for.
    """

    folders: Sequence[Path]
    target: Path | None
    checkpoints: Path
    way_out: str
    workers: int | None = 0
    accepted: str | None = None
    used: set[str] = field(default_factory=set)

    def obtain(
        self,
        function: Callable[..., Files],
        points: Mapping[str, Point],
        *,
        label: str,
        alone: bool = False,
        **bound: Any,
    ) -> dict[str, Run]:
        """The runs that `points` names; those that are not there are made.

        Args:
            function: makes one: `function(**point, **bound)`; see `reproduction.sweep.sweep`.
            points: the settings of each run, by its name.
            label: name in the progress bar.
            alone: one after the other in this process, because time is measured.
            **bound: further arguments, which do not identify a result: folders and the like.

        Raises:
            MissingResultError: a run is missing, and nothing may be computed; the message says why.
            SweepError: making them failed.
        """
        return self._obtain(function, {name: {name: point} for name, point in points.items()}, label, alone, bound)

    def obtain_together(
        self,
        function: Callable[..., Mapping[str, Files]],
        groups: Mapping[str, Mapping[str, Point]],
        *,
        label: str,
        **bound: Any,
    ) -> dict[str, Run]:
        """As `obtain`, for runs that are cheaper to make several at once.

        Args:
            function: makes those of a group that are missing: `function(points=..., **bound)`, with the settings by
                name, gives the files by name.
            groups: runs by name in each group.
            label: name in the progress bar.
            **bound: see `obtain`.
        """
        return self._obtain(function, groups, label, False, bound, together=True)

    def _obtain(
        self,
        function: Callable[..., Any],
        groups: Mapping[str, Mapping[str, Point]],
        label: str,
        alone: bool,
        bound: Mapping[str, Any],
        together: bool = False,
    ) -> dict[str, Run]:
        code = _code(function)
        wanted = {name: _plain(point) for group in groups.values() for name, point in group.items()}
        self.used |= set(wanted)
        found = {name: self._found(name, point, code) for name, point in wanted.items()}
        missing = {name for name, run in found.items() if not isinstance(run, Run)}
        if missing:
            first = next(name for name in wanted if name in missing)
            if self.target is None:
                raise MissingResultError(f"no result {first} ({found[first]}): {self.way_out}")
            # Runs with the same settings are made once.
            tasks: dict[str, Point] = {}
            names: dict[str, list[str]] = {}
            for group in groups.values():
                waiting = {name: wanted[name] for name in group if name in missing}
                if waiting:
                    task = {"points": waiting} if together else next(iter(waiting.values()))
                    key = json.dumps(task, sort_keys=True)
                    tasks[key] = task
                    names.setdefault(key, []).extend(waiting)

            def received(task: Point, made: Any) -> None:
                for name in names[json.dumps(_plain(task), sort_keys=True)]:
                    self.keep(function, name, wanted[name], made[name] if together else made)

            sweep(
                partial(function, **bound),
                list(tasks.values()),
                self.checkpoints / "sweep",
                workers=0 if alone else self.workers,
                label=label,
                received=received,
            )
            shutil.rmtree(self.checkpoints / "sweep", ignore_errors=True)  # what is there has its files now
        return {
            name: run if isinstance(run, Run) else self._present(name, wanted[name], code)
            for name, run in found.items()
        }

    def has(self, function: Callable[..., Any], name: str, point: Point) -> bool:
        """Whether a run is there that `function` has made with these settings."""
        self.used.add(name)
        return isinstance(self._found(name, _plain(point), _code(function)), Run)

    def keep(self, function: Callable[..., Any], name: str, point: Point, files: Files) -> None:
        """Write the files of a run that `function` has made, then its record: without one it counts as not made."""
        assert self.target is not None, "nothing may be computed"
        for suffix, content in files.items():
            write_atomically(self.target / f"{name}{suffix}", content)
        checksums = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in sorted(files.items())}
        made = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "neural_ode": neural_ode.__version__}
        made["torch"] = torch.__version__.partition("+")[0]
        record = {"code": _code(function), "files": checksums, "made": made, "settings": _plain(point)}
        self._record(name, record)

    def _record(self, name: str, record: Mapping[str, Any]) -> None:
        assert self.target is not None, "nothing may be computed"
        records = _records(self.target)
        records[name] = record
        write_atomically(self.target / RECORDS, json_bytes(dict(sorted(records.items()))))

    def _present(self, name: str, point: Point, code: str) -> Run:
        run = self._found(name, point, code)
        assert isinstance(run, Run), run
        return run

    def _found(self, name: str, point: Point, code: str) -> "Run | str":
        """The run, or why there is none."""
        reasons = []
        for folder in self.folders:
            problem = _misfit(_records(folder).get(name), point, code)
            if problem in (NEVER, OTHER_CODE) and self.accepted and folder == self.target:
                problem = self._accept(name, point, code)
            if problem is None:
                return Run(folder, name, _records(folder)[name])
            reasons.append(problem)
        return next((reason for reason in reasons if reason != NEVER), NEVER)

    def _accept(self, name: str, point: Point, code: str) -> str | None:
        """Take the files that are there for those of this run, and say so in its record; why that cannot be."""
        assert self.target is not None
        before = _records(self.target).get(name, {})
        suffixes = list(before.get("files", {})) or _suffixes(self.target, name)
        checksums = {suffix: _checksum(self.target / f"{name}{suffix}") for suffix in sorted(suffixes)}
        if not suffixes or None in checksums.values():
            return NEVER
        if before and checksums != before["files"]:
            return "its files are not those that were made"
        accepted = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "reason": self.accepted}
        history = [*before.get("accepted", []), accepted]
        record = {"accepted": history, "code": code, "files": checksums, "made": before.get("made")}
        self._record(name, {**record, "settings": point})
        return None

    def prune(self) -> list[str]:
        """Remove the runs that were not asked for; their names."""
        assert self.target is not None, "nothing may be computed"
        records = _records(self.target)
        gone = sorted(set(records) - self.used)
        if gone:
            kept = {name: record for name, record in records.items() if name in self.used}
            write_atomically(self.target / RECORDS, json_bytes(kept))
            for name in gone:
                for suffix in records[name]["files"]:
                    (self.target / f"{name}{suffix}").unlink(missing_ok=True)
        return gone

    def strays(self) -> list[str]:
        """Files that no run has made: a killed one, or somebody."""
        assert self.target is not None, "nothing may be computed"
        made = {f"{name}{suffix}" for name, run in _records(self.target).items() for suffix in run["files"]}
        paths = (path for path in self.target.rglob("*") if path.is_file())
        return sorted({path.relative_to(self.target).as_posix() for path in paths} - made - {RECORDS})


def _misfit(record: Mapping[str, Any] | None, point: Point, code: str) -> str | None:
    """Why a record is not that of a run with these settings and code, in words."""
    if record is None:
        return NEVER
    if record["settings"] != point:
        return f"made with other settings: {_difference(record['settings'], point)}"
    return None if record["code"] == code else OTHER_CODE


def _suffixes(folder: Path, name: str) -> list[str]:
    """Of the files that begin with the name of a run and a dot."""
    stem = folder / name
    names = (path.name for path in stem.parent.glob(f"{stem.name}.*") if path.is_file())
    return [x.removeprefix(stem.name) for x in names if "." not in x.removeprefix(f"{stem.name}.")]


def _records(folder: Path) -> dict[str, Any]:
    """The records of all runs in a folder; none where there is no such file.

    Raises:
        FileError: the file is damaged.
    """
    file = folder / RECORDS
    if not file.exists():
        return {}
    return read_json(file, f"{_way_back(file)}, and compute again")


def _code(function: Callable[..., Any]) -> str:
    """Fingerprint of the code that makes a result."""
    text = f"{getattr(function, '__name__', '')} {meaning(function_file(function))} {behaviour()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(point: Point) -> dict[str, Any]:
    """The settings as they are when they have been written and read again."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(point), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"the settings of a run must be numbers, text, or lists and dicts of them: {error}"
        ) from error
    return plain


def _difference(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str:
    """Where two settings differ, in words."""
    parts = []
    for name in dict.fromkeys([*stored, *wanted]):
        a, b = stored.get(name), wanted.get(name)
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            parts.append(_difference(a, b, f"{prefix}{name}."))
        elif a != b or (name in stored) != (name in wanted):
            parts.append(f"{prefix}{name} was {_short(a)}, is {_short(b)}")
    return ", ".join(parts)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checksum(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _way_back(path: Path) -> str:
    return f"restore it with `git checkout -- {path}` if it is in the repository, else delete it"
