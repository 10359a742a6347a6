"""Sweeps: the same results wherever they are computed, and none lost, whatever dies."""

import ast
import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from distributed import Client
from distributed.utils import json_load_robust

from neural_ode.errors import InvalidArgumentError, NeuralODEError, NeuralODEWarning
from reproduction import results
from reproduction.data.mnist import Mnist, ShuffledBatches, load_splits
from reproduction.experiments import mnist
from reproduction.meaning import code_cells
from reproduction.pipeline import compute as command
from reproduction.pipeline.identity import experiment_file
from reproduction.pipeline.parameters import notebook_parameters
from reproduction.sweep import SCHEDULER_VARIABLE, SweepError, grid, sweep
from reproduction.training.mnist import classifier_run, train_classifier
from reproduction.training.weights import run_files
from reproduction.workspace import DRAW_VARIABLE, OUTPUT_VARIABLE

ROOT = Path(__file__).parents[1]

TASKS = '''
"""What the sweeps of the tests compute."""

import os
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from neural_ode import solve
from reproduction.sweep import grid, sweep


def gradient(log: Path, *, width: int, seed: int) -> dict[str, object]:
    """A gradient through a solve. Leaves a trace of every attempt; waits where it finds a file `wait-<seed>`."""
    (log / f"attempt-{width}-{seed}-{time.time_ns()}").write_text(str(os.getpid()))
    given_up = time.monotonic() + 60
    while (log / f"wait-{seed}").exists() and time.monotonic() < given_up:
        time.sleep(0.02)
    if (log / f"fail-{seed}").exists():
        raise ValueError(f"seed {seed} is out of luck")
    f = nn.Linear(width, width)  # of random numbers that nobody has seeded here
    y0 = torch.randn(4, width, requires_grad=True)
    y = solve(lambda t, y: torch.tanh(f(y)), y0, [0.0, 1.0], rtol=1e-4, atol=1e-4).y
    y[-1].square().sum().backward()
    return {"gradient": y0.grad, "threads": torch.get_num_threads()}


def nested(log: Path, folder: Path, *, width: int) -> list[dict[str, object]]:
    """Three points of a sweep of its own."""
    return sweep(partial(gradient, log), grid(width=[width], seed=range(3)), folder)


@torch.no_grad()
def decorated(*, seed: int) -> int:
    return seed + 1


def an_object(*, seed: int) -> "Task":
    return Task(seed)


class Task:
    def __init__(self, factor: int):
        self.factor = factor

    def run(self, *, seed: int) -> int:
        return self.factor * seed
'''

POINTS = grid(width=[2, 3], seed=range(3))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module above, importable here and in the processes that a test starts."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "sweep_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(source))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(source), str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.delenv(SCHEDULER_VARIABLE, raising=False)
    yield importlib.import_module("sweep_tasks")
    del sys.modules["sweep_tasks"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def attempts(log: Path, seed: str = "*") -> list[Path]:
    return sorted(log.glob(f"attempt-*-{seed}-*"))


def identical(found: list, expected: list) -> bool:
    """Bit for bit."""
    return [pickle.dumps(a["gradient"].numpy()) for a in found] == [
        pickle.dumps(b["gradient"].numpy()) for b in expected
    ]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@contextlib.contextmanager
def dask(*arguments: str) -> Iterator[subprocess.Popen]:
    """A scheduler or worker of its own."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "dask", *arguments], **quiet)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def cluster(tasks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A scheduler and two workers, as they are started by hand or by Slurm."""
    file = tmp_path / "scheduler.json"
    worker = ("worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard")
    local = ("--local-directory", str(tmp_path))
    with (
        dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)),
        dask(*worker, *local),
        dask(*worker, *local),
    ):
        monkeypatch.setenv(SCHEDULER_VARIABLE, json_load_robust(file, timeout=60)["address"])
        yield


def test_grid() -> None:
    assert grid(seed=range(2), kind=["a", "b"]) == [
        {"seed": 0, "kind": "a"},
        {"seed": 0, "kind": "b"},
        {"seed": 1, "kind": "a"},
        {"seed": 1, "kind": "b"},
    ]


def test_serial(tasks: ModuleType, log: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        work = partial(tasks.gradient, log)
        seen = []
        results = sweep(work, POINTS, tmp_path / "a", received=lambda point, result: seen.append(dict(point)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert [r["gradient"].shape[1] for r in results] == [p["width"] for p in POINTS]
    assert {r["threads"] for r in results} == {1}
    assert seen == POINTS
    assert torch.equal(torch.get_rng_state(), before)
    # Neither the order nor what was computed before decides a result, and a stored one is read.
    torch.manual_seed(8)
    backwards = sweep(work, POINTS[::-1], tmp_path / "b")
    assert identical(backwards[::-1], results)
    assert len(attempts(log)) == 12
    assert identical(sweep(work, [*POINTS, POINTS[0]], tmp_path / "a"), [*results, results[0]])
    assert len(attempts(log)) == 12


def test_another_point_or_other_code_is_another_result(tasks: ModuleType, log: Path, tmp_path: Path) -> None:
    sweep(partial(tasks.gradient, log), POINTS[:1], tmp_path)
    (stored,) = tmp_path.glob("*.pt")
    stored.write_bytes(stored.read_bytes()[:20])
    with pytest.warns(NeuralODEWarning, match="damaged"):
        sweep(partial(tasks.gradient, log), POINTS[:1], tmp_path)
    assert len(attempts(log)) == 2
    source = Path(tasks.__file__)
    other = source.with_name("other_tasks.py")
    other.write_text(source.read_text().replace("1e-4", "1e-5"))
    sweep(partial(importlib.import_module("other_tasks").gradient, log), POINTS[:2], tmp_path)
    assert len(attempts(log)) == 4
    assert len(list(tmp_path.glob("*.pt"))) == 3


def test_a_stored_result_runs_no_code(tasks: ModuleType, log: Path, tmp_path: Path) -> None:
    """A folder of results may come from anywhere: what a pickle would run is not run."""
    results = sweep(partial(tasks.gradient, log), POINTS[:1], tmp_path)
    (stored,) = tmp_path.glob("*.pt")
    pickled = pickle.dumps(Mark(tmp_path / "ran"), protocol=2)
    for content in (pickled, pickled + hashlib.sha256(pickled).digest()):
        stored.write_bytes(content)
        with pytest.warns(NeuralODEWarning, match=rf"{stored.name} is damaged .*: computed again"):
            assert identical(sweep(partial(tasks.gradient, log), POINTS[:1], tmp_path), results)
        assert not (tmp_path / "ran").exists()


class Mark:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_a_flipped_bit_in_a_result_is_noticed(tasks: ModuleType, log: Path, tmp_path: Path) -> None:
    work = partial(tasks.gradient, log)
    results = sweep(work, POINTS[:1], tmp_path)
    (stored,) = tmp_path.glob("*.pt")
    content = bytearray(stored.read_bytes())
    values = results[0]["gradient"].numpy().tobytes()
    content[bytes(content).index(values)] ^= 1
    stored.write_bytes(content)
    with pytest.warns(NeuralODEWarning, match="damaged"):
        assert identical(sweep(work, POINTS[:1], tmp_path), results)


def test_a_result_that_no_file_can_hold_is_refused(tasks: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"only tensors, numbers, text, bytes.*got Task"):
        sweep(tasks.an_object, [{"seed": 1}], tmp_path)
    assert list(tmp_path.glob("*.pt")) == []


def test_a_killed_worker_loses_nothing(tasks: ModuleType, log: Path, tmp_path: Path, cluster: None) -> None:
    work = partial(tasks.gradient, log)
    (log / "wait-1").touch()
    with ThreadPoolExecutor(1) as pool:
        parallel = pool.submit(sweep, work, POINTS, tmp_path / "parallel")
        # Both workers come to wait in a point with seed 1. One that has finished another point before dies there.
        until(lambda: len(attempts(log, "1")) == 2 and list((tmp_path / "parallel").glob("*.pt")))
        finished = {file.read_text() for file in attempts(log, "0") + attempts(log, "2")}
        waiting = {file.read_text() for file in attempts(log, "1")}
        assert len(waiting) == 2
        os.kill(int((waiting & finished).pop()), signal.SIGKILL)
        (log / "wait-1").unlink()
        found = parallel.result(timeout=60)
    # What the dead worker was at was begun again; nothing that was finished was.
    assert sorted(len(attempts(log, f"{seed}")) for seed in range(3)) == [2, 2, 3]
    assert identical(found, sweep(work, POINTS, tmp_path / "serial", workers=0))
    assert {file.name for file in (tmp_path / "serial").iterdir()} == {
        file.name for file in (tmp_path / "parallel").iterdir()
    }
    # Failures of tasks come back by name, with the results of the others.
    (log / "fail-2").touch()
    with pytest.raises(SweepError, match=r"2 of 6 points failed, at first width=\d, seed=2: ValueError: seed 2 is"):
        sweep(work, POINTS, tmp_path / "failing")
    assert len(list((tmp_path / "failing").glob("*.pt"))) == 4


def test_no_worker_is_idle_while_points_wait(tasks: ModuleType, log: Path, tmp_path: Path, cluster: None) -> None:
    """One point takes long. The other worker computes all others, those too that were meant for the busy one."""
    (log / "wait-1").touch()
    points = [{"width": 2, "seed": 1}, *({"width": width, "seed": 0} for width in range(2, 9))]
    with ThreadPoolExecutor(1) as pool:
        parallel = pool.submit(sweep, partial(tasks.gradient, log), points, tmp_path)
        try:
            until(lambda: len(list(tmp_path.glob("*.pt"))) == len(points) - 1, seconds=30)
        finally:
            (log / "wait-1").unlink()
        assert len(parallel.result(timeout=60)) == len(points)
    # Dask moves tasks of a kind of which it has seen how long they take.
    with Client(os.environ[SCHEDULER_VARIABLE]) as client:
        kinds = client.run_on_scheduler(
            lambda dask_scheduler: {
                name: kind.duration_average for name, kind in dask_scheduler.task_prefixes.items()
            }
        )
    assert list(kinds) == ["point"]
    assert kinds["point"] > 0


def test_a_point_can_be_a_sweep(tasks: ModuleType, log: Path, tmp_path: Path, cluster: None) -> None:
    """On a cluster too: it waits for no worker, since its own may be the only one."""
    work = partial(tasks.nested, log, tmp_path / "inner")
    found = sweep(work, [{"width": 2}, {"width": 3}], tmp_path / "outer")
    assert [len(inner) for inner in found] == [3, 3]
    expected = sweep(partial(tasks.gradient, log), POINTS, tmp_path / "serial", workers=0)
    assert identical([one for inner in found for one in inner], expected)


def test_a_result_that_cannot_be_stored_is_an_error(tasks: ModuleType, log: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").touch()
    with pytest.raises(OSError, match="folder"):
        sweep(partial(tasks.gradient, log), POINTS[:1], tmp_path / "folder")


def test_only_a_function_in_a_module_identifies_a_result(tasks: ModuleType, tmp_path: Path) -> None:
    for function in (tasks.Task(2).run, lambda seed: seed, len):
        with pytest.raises(InvalidArgumentError, match="a function that stands in a module by itself"):
            sweep(function, [{"seed": 0}], tmp_path)


def test_the_code_of_a_decorated_function_counts(tasks: ModuleType, tmp_path: Path) -> None:
    assert sweep(tasks.decorated, [{"seed": 1}], tmp_path) == [2]
    source = Path(tasks.__file__)
    source.with_name("changed_tasks.py").write_text(source.read_text().replace("seed + 1", "seed + 2"))
    assert sweep(importlib.import_module("changed_tasks").decorated, [{"seed": 1}], tmp_path) == [3]


def test_a_point_that_fails(tasks: ModuleType, log: Path, tmp_path: Path) -> None:
    work = partial(tasks.gradient, log)
    (log / "fail-1").touch()
    with pytest.raises(
        SweepError, match=r"2 of 6 points failed, at first width=2, seed=1: ValueError: seed 1 is"
    ) as e:
        sweep(work, POINTS, tmp_path)
    assert [point for point, _ in e.value.failures] == [POINTS[1], POINTS[4]]
    assert [result is None for result in e.value.results] == [False, True, False] * 2
    (log / "fail-1").unlink()
    results = sweep(work, POINTS, tmp_path)
    assert len(attempts(log)) == 8
    assert identical([results[0]], [e.value.results[0]])


def test_a_killed_sweep_goes_on(tasks: ModuleType, log: Path, tmp_path: Path) -> None:
    (log / "wait-2").touch()
    script = f"""
        from functools import partial
        from pathlib import Path
        from reproduction.sweep import grid, sweep
        from sweep_tasks import gradient
        points, folder = grid(width=[2, 3], seed=range(3)), Path({str(tmp_path / "killed")!r})
        sweep(partial(gradient, Path({str(log)!r})), points, folder)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.DEVNULL)
    until(lambda: attempts(log, "2"))
    process.kill()
    process.wait()
    (log / "wait-2").unlink()
    work = partial(tasks.gradient, log)
    found = sweep(work, POINTS, tmp_path / "killed")
    assert len(attempts(log)) == 6 + 1
    assert identical(found, sweep(work, POINTS, tmp_path / "whole"))


def test_what_cannot_be_identified(tmp_path: Path) -> None:
    for function in (lambda **point: 1, print, partial(lambda **point: 1)):
        with pytest.raises(InvalidArgumentError, match="a function that stands in a module by itself"):
            sweep(function, [{}], tmp_path)
    with pytest.raises(InvalidArgumentError, match="must be numbers, text"):
        sweep(grid, [{"seed": torch.zeros(1)}], tmp_path)


def test_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    monkeypatch.setenv(SCHEDULER_VARIABLE, "tcp://127.0.0.1:1")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(NeuralODEError, match=r"no Dask scheduler at DASK_SCHEDULER_ADDRESS=tcp://127.0.0.1:1"),
    ):
        sweep(grid, [{"a": [1]}], tmp_path)
    assert sweep(grid, [{"a": [1]}], tmp_path, workers=0) == [[{"a": 1}]]
    assert sweep(grid, [{"a": [1]}], tmp_path) == [[{"a": 1}]], "with nothing to compute there is nobody to ask"


# The results of notebooks ------------------------------------------------------------------------------------

TINY = """
04_mnist:
  models: [MLP, ODE-Net]
  seeds: [0]
  more_seeds: {MLP: [1]}
  train_size: 16
  validation_size: 10
  test_size: 10
  epochs: 1
  batch_size: 8
  cost_batch: 4
  cost_rounds: 1
  device: cpu
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a tiny profile."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "tiny.yaml").write_text(TINY)
    for name in ("data", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "lib"))
    for name in (OUTPUT_VARIABLE, DRAW_VARIABLE, SCHEDULER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_networks_in_processes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.main(["04_mnist", "--profile", "tiny", "--workers", "2"]) == 0
    folder = project / "results" / "tiny" / "04_mnist"
    networks = ["MLP-0", "MLP-1", "ODE-Net-0"]
    assert sorted(file.stem for file in folder.glob("*.safetensors")) == networks
    assert sorted(file.stem for file in (folder / "test_errors").glob("*.csv")) == networks
    assert sorted(file.stem for file in folder.glob("*.csv")) == [*networks, "step_costs", "vode-adams-0"]
    records = json.loads((folder / "provenance.json").read_text())
    tests = [f"test_errors/{name}" for name in networks]
    assert sorted(records) == [*networks, "step_costs", *tests, "vode-adams-0"]

    # Bit for bit the weights of a training here, which needs no other process.
    given = notebook_parameters(project, "04_mnist", "tiny")
    how = mnist.recipe(**{name: given[name] for name in inspect.signature(mnist.recipe).parameters})
    data = load_splits(project / "data" / "mnist", [given[f"{split}_size"] for split in Mnist._fields])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = run_files(*train_classifier("ODE-Net", 0, data, how["training"], how["solver"]))
    torch.set_num_threads(threads)
    made = content(folder)
    assert made["ODE-Net-0.safetensors"] == here[".safetensors"]

    # What is there is taken as it is, by processes or without them, and nothing is left of the work.
    monkeypatch.setattr(ShuffledBatches, "__call__", None)  # whoever trains needs a batch
    assert command.main(["04_mnist", "--profile", "tiny"]) == 0
    assert content(folder) == made
    assert list((project / ".staging").rglob("*.pt")) == []

    # A network that nobody asks for any more goes; the others are not touched.
    (project / "params" / "tiny.yaml").write_text(TINY.replace("MLP: [1]", ""))
    assert command.main(["04_mnist", "--profile", "tiny"]) == 0
    assert {name for name in made if name.startswith("MLP-1")} == made.keys() - content(folder).keys()
    assert content(folder)["MLP-0.safetensors"] == made["MLP-0.safetensors"]


def test_a_run_is_recorded_after_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says that the run is there: whoever finds it reads the files beside it."""
    written: list[str] = []
    monkeypatch.setattr(results, "write_atomically", lambda path, content: written.append(path.name))
    store = results.Store([tmp_path], tmp_path, tmp_path, "compute it")
    store.keep(classifier_run, "MLP-0", {"seed": 0}, {".csv": b"", ".safetensors": b""})
    assert written == ["MLP-0.csv", "MLP-0.safetensors", "provenance.json"]


def test_a_misspelt_parameter(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "params" / "tiny.yaml").write_text(TINY.replace("epochs", "epoch"))
    assert command.main(["04_mnist", "--profile", "tiny"]) == 1
    assert "unknown parameter 'epoch', did you mean 'epochs'" in capsys.readouterr().err
    assert not (project / "results").exists()


class AskedError(Exception):
    """With what a notebook's results were asked for."""


def notebook_asks(name: str, profile: str, parameters: dict[str, object]) -> None:
    """Run the notebook's own lines up to where it asks for its results."""
    cells = code_cells(ROOT / "notebooks" / f"{name}.ipynb")
    imports = [node for cell in cells for node in ast.parse(cell).body if isinstance(node, ast.ImportFrom)]
    known: dict[str, object] = {"profile": profile, "work": None, **parameters}
    exec(compile(ast.Module(imports, []), name, "exec"), known)
    (cell,) = [cell for cell in cells if ".results(work" in cell]
    exec(cell, known)


def test_notebooks_show_what_the_pipeline_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all profiles, with a stand-in for the computing. What only one of them asked for could not be drawn."""
    for name in ("params", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(ROOT)
    asked, different = 0, []
    for file in sorted((ROOT / "params").glob("*.yaml")):
        for name in sorted(yaml.safe_load(file.read_text())):
            if experiment_file(name) is None:
                continue
            module = command.experiment(name)

            @functools.wraps(module.results)
            def stand_in(work: object, **asked: object) -> None:
                raise AskedError(asked)

            with monkeypatch.context() as patch:
                patch.setattr(module, "results", stand_in)
                with pytest.raises(AskedError) as shown:
                    notebook_asks(name, file.stem, notebook_parameters(ROOT, name, file.stem))
                with pytest.raises(AskedError) as computed:
                    command.compute(name, file.stem, tmp_path)
            asked += 1
            if shown.value.args != computed.value.args:
                different.append((file.stem, name, shown.value.args, computed.value.args))
    assert different == []
    computing = [path.stem for path in (ROOT / "notebooks").glob("*.ipynb") if experiment_file(path.stem)]
    assert asked == 2 * len(computing) + 1, "every notebook in two profiles, and the networks for a GPU"
