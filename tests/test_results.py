"""Results: read where they fit, made where they do not, and never anything else."""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from torch import nn

from neural_ode.errors import FileError, InvalidArgumentError
from reproduction import meaning
from reproduction.results import MissingResultError, Run, Store, csv_bytes, json_bytes, read_rows
from reproduction.sweep import SweepError
from reproduction.workspace import DRAW_VARIABLE, OUTPUT_VARIABLE, Workspace

ROOT = Path(__file__).parents[1]

TASKS = '''
"""What the stores of the tests hold."""

from pathlib import Path

import torch
from torch import nn

from reproduction.results import csv_bytes
from reproduction.training.loop import Fit, fit
from reproduction.training.weights import run_files

FACTOR = 2


def measure(*, x: int, log: Path) -> dict[str, bytes]:
    """A table of one row; leaves a trace."""
    (log / f"made-{x}").touch()
    if x < 0:
        raise ValueError("below zero")
    return {".csv": csv_bytes([{"x": x, "y": FACTOR * x / 3}])}


def together(*, points: dict, log: Path) -> dict[str, dict[str, bytes]]:
    (log / "-".join(["together", *points])).touch()
    return {name: {".csv": csv_bytes([point])} for name, point in points.items()}


def train(*, seed: int, steps: int, checkpoints: Path) -> dict[str, bytes]:
    """A training that takes its time."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters())

    def batch(step: int) -> torch.Tensor:
        return torch.randn(64, 4, generator=torch.Generator().manual_seed(step))

    task = Fit(
        model=model, loss=lambda m, x: (m(x) - x.sum(1, keepdim=True)).square().mean(), batch=batch,
        optimizer=optimizer, scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer), evaluate=lambda m: {},
        steps=steps, epochs=20, settings={"seed": seed}, code=Path(__file__), label=f"seed {seed}",
    )
    return run_files(model, fit(task, checkpoints / f"{seed}.pt"))
'''


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module above, importable here and in the processes that a test starts."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "result_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(source))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(source), str(ROOT / "lib")]))
    yield importlib.import_module("result_tasks")
    del sys.modules["result_tasks"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def made(log: Path) -> list[str]:
    """What was made since the last call."""
    names = sorted(path.name for path in log.iterdir())
    for path in log.iterdir():
        path.unlink()
    return names


def store(tmp_path: Path, **changes) -> Store:
    folder = tmp_path / "results"
    return Store(
        **{"folders": [folder], "target": folder, "checkpoints": tmp_path / "checkpoints", "way_out": "go"}
        | changes
    )


def measured(place: Store, tasks: ModuleType, log: Path, *xs: int) -> dict[str, Run]:
    return place.obtain(tasks.measure, {f"x/{x}": {"x": x} for x in xs}, label="x", log=log)


def test_what_is_made_is_read(tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    first = measured(store(tmp_path), tasks, log, 1, 2)
    assert made(log) == ["made-1", "made-2"]
    again = measured(store(tmp_path), tasks, log, 1, 2)
    assert made(log) == []
    assert first == again
    assert again["x/1"].table().to_dict("records") == [{"x": 1, "y": 2 / 3}]  # to the last digit
    assert again["x/1"].identity(".csv") == hashlib.sha256(again["x/1"].file(".csv").read_bytes()).hexdigest()


def test_one_more_is_one_more(tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    measured(store(tmp_path), tasks, log, 1, 2)
    made(log)
    assert list(measured(store(tmp_path), tasks, log, 1, 2, 3)) == ["x/1", "x/2", "x/3"]
    assert made(log) == ["made-3"]


def test_other_settings_are_made_again(tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    place = store(tmp_path)
    place.obtain(tasks.measure, {"x": {"x": 1}}, label="x", log=log)
    run = place.obtain(tasks.measure, {"x": {"x": 2}}, label="x", log=log)["x"]
    assert made(log) == ["made-1", "made-2"]
    assert run.table()["x"].tolist() == [2]


def test_code_counts_by_meaning_and_the_library_by_behaviour(
    tmp_path: Path, tasks: ModuleType, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(store(tmp_path), tasks, log, 1)
    made(log)
    code = Path(tasks.__file__)
    code.write_text(TASKS.replace("leaves a trace", "leaves something behind"))
    measured(store(tmp_path), tasks, log, 1)
    assert made(log) == []
    code.write_text(TASKS.replace("FACTOR = 2", "FACTOR = 3"))
    measured(store(tmp_path), tasks, log, 1)
    assert made(log) == ["made-1"]
    golden = tmp_path / "numerics.json"
    golden.write_text('{"dopri5": 1}')
    monkeypatch.setattr(meaning, "NUMERICS", golden)
    measured(store(tmp_path), tasks, log, 1)
    assert made(log) == ["made-1"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x": 2}, r"no result x \(made with other settings: x was 1, is 2\): go"),
        ({"x": 1, "more": {"a": 1}}, r"other settings: more was null, is \{\"a\": 1\}"),
        (None, r"no result x \(made by other code\): go"),
    ],
)
def test_what_only_draws_says_why_it_cannot(
    changed: dict | None, words: str, tmp_path: Path, tasks: ModuleType, log: Path
) -> None:
    store(tmp_path).obtain(tasks.measure, {"x": {"x": 1}}, label="x", log=log)
    if changed is None:
        Path(tasks.__file__).write_text(TASKS.replace("FACTOR = 2", "FACTOR = 3"))
    with pytest.raises(MissingResultError, match=words):
        store(tmp_path, target=None).obtain(tasks.measure, {"x": changed or {"x": 1}}, label="x", log=log)
    with pytest.raises(MissingResultError, match=r"no result z \(it was not made\)"):
        store(tmp_path, target=None).obtain(tasks.measure, {"z": {"x": 1}}, label="x", log=log)
    assert made(log) == ["made-1"]


def test_by_hand_what_fits_is_read_and_what_does_not_goes_elsewhere(
    tmp_path: Path, tasks: ModuleType, log: Path
) -> None:
    pipeline, scratch = tmp_path / "results", tmp_path / "scratch"
    measured(store(tmp_path), tasks, log, 1)
    before = {path: path.read_bytes() for path in pipeline.rglob("*") if path.is_file()}
    made(log)
    by_hand = {"folders": [pipeline, scratch], "target": scratch}
    found = measured(store(tmp_path, **by_hand), tasks, log, 1, 2)
    assert made(log) == ["made-2"]
    assert [run.folder for run in found.values()] == [pipeline, scratch]
    assert {path: path.read_bytes() for path in pipeline.rglob("*") if path.is_file()} == before
    measured(store(tmp_path, **by_hand), tasks, log, 1, 2)
    assert made(log) == []


def test_only_what_is_missing_is_made_together(tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    def ask(*names: str) -> dict[str, Run]:
        groups = {"one": {name: {"name": name} for name in names}, "two": {"z": {"name": "z"}}}
        return store(tmp_path).obtain_together(tasks.together, groups, label="groups", log=log)

    ask("a", "b")
    assert made(log) == ["together-a-b", "together-z"]
    assert ask("a", "b", "c")["c"].table()["name"].tolist() == ["c"]
    assert made(log) == ["together-c"]


def test_a_failure_keeps_the_others(tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    with pytest.raises(SweepError, match=r"1 of 3 points failed, at first x=-1: ValueError: below zero"):
        measured(store(tmp_path), tasks, log, 1, -1, 2)
    made(log)
    measured(store(tmp_path), tasks, log, 1, 2)
    assert made(log) == []


def test_a_file_that_was_changed_is_no_result(tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    run = measured(store(tmp_path), tasks, log, 1)["x/1"]
    path = run.file(".csv")
    path.write_text(path.read_text().replace("1", "7"))
    with pytest.raises(
        FileError, match=r"x/1\.csv is damaged or missing \(its checksum differs\): restore it with"
    ):
        measured(store(tmp_path), tasks, log, 1)["x/1"].table()
    path.unlink()
    with pytest.raises(FileError, match="damaged or missing"):
        run.table()
    with pytest.raises(MissingResultError, match=r"x/1 has no \.json: it has \.csv"):
        run.values()


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_damaged_records_are_named(content: str, tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    measured(store(tmp_path), tasks, log, 1)
    (tmp_path / "results" / "provenance.json").write_text(content)
    with pytest.raises(FileError, match=r"provenance\.json (is damaged|must hold)"):
        measured(store(tmp_path), tasks, log, 1)


def test_settings_that_a_file_cannot_hold_are_refused(tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="the settings of a run must be numbers, text"):
        store(tmp_path).obtain(tasks.measure, {"x": {"x": tmp_path}}, label="x", log=log)


def test_results_can_be_accepted_with_a_reason(tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    """Of other code, and of before there were records."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "old.csv").write_bytes(csv_bytes([{"x": 5, "y": 1.5}]))
    place = store(tmp_path, accepted="they are right")
    place.obtain(tasks.measure, {"old": {"x": 5}, "new": {"x": 1}}, label="x", log=log)
    assert made(log) == ["made-1"]
    Path(tasks.__file__).write_text(TASKS.replace("FACTOR = 2", "FACTOR = 3"))
    again = store(tmp_path, accepted="it cannot matter")
    again.obtain(tasks.measure, {"old": {"x": 5}, "new": {"x": 1}}, label="x", log=log)
    assert made(log) == []
    records = json.loads((folder / "provenance.json").read_text())
    assert [entry["reason"] for entry in records["old"]["accepted"]] == ["they are right", "it cannot matter"]
    assert [entry["reason"] for entry in records["new"]["accepted"]] == ["it cannot matter"]
    assert records["new"]["made"]["torch"]
    assert records["old"]["made"] is None
    # A file that was changed by hand is not accepted, whatever the reason.
    Path(tasks.__file__).write_text(TASKS)
    (folder / "new.csv").write_bytes(csv_bytes([{"x": 1, "y": 9.0}]))
    again.obtain(tasks.measure, {"new": {"x": 1}}, label="x", log=log)
    assert made(log) == ["made-1"]
    # Other settings are another result.
    again.obtain(tasks.measure, {"new": {"x": 2}}, label="x", log=log)
    assert made(log) == ["made-2"]


def test_what_is_no_longer_asked_for_goes_and_nothing_else(tmp_path: Path, tasks: ModuleType, log: Path) -> None:
    measured(store(tmp_path), tasks, log, 1, 2, 3)
    (tmp_path / "results" / "notes.txt").touch()
    place = store(tmp_path)
    measured(place, tasks, log, 1, 3)
    assert place.prune() == ["x/2"]
    assert place.strays() == ["notes.txt"]
    names = sorted(path.name for path in (tmp_path / "results").rglob("*") if path.is_file())
    assert names == ["1.csv", "3.csv", "notes.txt", "provenance.json"]
    assert list(json.loads((tmp_path / "results" / "provenance.json").read_text())) == ["x/1", "x/3"]


def test_tables_keep_every_digit_and_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(csv_bytes([{"a": 1 / 3, "b": None}, {"a": 1e-300, "b": 2, "c": "x, y", "d": True}]))
    table = read_rows(file, "make it")
    assert table["a"].tolist() == [1 / 3, 1e-300]
    assert pd.isna(table["b"][0])
    assert table["c"][1] == "x, y"
    assert table["d"][1] is True
    for damaged in ("", "a,b\n1\n", "a,b\n1,2,3\n"):
        file.write_text(damaged)
        with pytest.raises(FileError, match=r"a\.csv is damaged .*: make it"):
            read_rows(file, "make it")
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"a": float("nan")})


def test_weights_come_back(tmp_path: Path, tasks: ModuleType) -> None:
    place = store(tmp_path)
    how = {"label": "nets", "checkpoints": place.checkpoints}
    run = place.obtain(tasks.train, {"net-0": {"seed": 0, "steps": 40}}, **how)["net-0"]
    model = nn.Linear(4, 1)
    run.load(model)
    assert not torch.equal(model.weight, nn.Linear(4, 1).weight)
    assert len(run.table()) == 20


def test_a_notebook_reads_the_pipeline_and_writes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OUTPUT_VARIABLE, raising=False)
    work = Workspace("04_mnist", "quick", tmp_path, tmp_path / "scratch")
    inside = Path("results", "quick", "04_mnist")
    assert work.store.folders == [tmp_path / inside, tmp_path / "scratch" / inside]
    assert work.store.target == tmp_path / "scratch" / inside
    assert Workspace("04_mnist", "quick", tmp_path, tmp_path).store.folders == [tmp_path / inside]
    monkeypatch.setenv(DRAW_VARIABLE, "1")
    assert Workspace("04_mnist", "quick", tmp_path, tmp_path / "scratch").store.target is None


KILLED = """
    import sys
    from pathlib import Path
    import result_tasks
    from reproduction.results import Store
    from reproduction.training import loop

    loop.SECONDS_BETWEEN_CHECKPOINTS = 0.01
    place, checkpoints = Path(sys.argv[1]), Path(sys.argv[2])
    store = Store([place], place, checkpoints, "go")
    points = {f"net-{seed}": {"seed": seed, "steps": 600} for seed in range(3)}
    store.obtain(result_tasks.train, points, label="nets", checkpoints=checkpoints)
"""


def without_seconds(folder: Path) -> dict[str, bytes]:
    """All files, byte for byte, but for how long something took, and the checksums of the tables that say it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".csv":
            found[path.name] = (
                path.read_bytes().splitlines()[0] + pd.read_csv(path).drop(columns="seconds").to_csv().encode()
            )
        elif path.name == "provenance.json":
            records = json.loads(path.read_text())
            for record in records.values():
                del record["files"][".csv"]
            found[path.name] = json.dumps(records).encode()
        elif path.is_file():
            found[path.name] = path.read_bytes()
    return found


def reached(folder: Path, files: int, process: subprocess.Popen) -> bool:
    return len(list(folder.rglob("*"))) >= files or process.poll() is not None


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.usefixtures("tasks")
def test_killed_at_any_time_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        return [sys.executable, "-c", textwrap.dedent(KILLED), *(str(tmp_path / name / x) for x in ("a", "b"))]

    subprocess.run(command("whole"), check=True, capture_output=True)
    progress = tmp_path / "killed"
    # From before anything is stored to when two runs are: by how many files there are, and a little later.
    for files, delay in ((0, 1.5), (3, 0.0), (8, 0.01), (12, 0.03)):
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(partial(reached, progress, files, process))
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (progress / "a" / "net-2.safetensors").exists(), "nothing was left to do"
    subprocess.run(command("killed"), check=True, capture_output=True)
    assert without_seconds(tmp_path / "killed" / "a") == without_seconds(tmp_path / "whole" / "a")
