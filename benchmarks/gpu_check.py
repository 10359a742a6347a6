"""`make gpu-check`: what only a machine with a GPU can show, in at most eight minutes.

The tests marked `gpu`, the notebooks at the quick profile, and the solvers timed beside their peers, all of it on
the GPU. `benchmarks/gpu.json` holds what was found, `benchmarks/gpu.md` the same as tables.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch.utils._pytree import tree_map

from benchmarks import contenders, larger_problems, problems
from benchmarks.cases import leave_out_others
from benchmarks.contenders import RUNS_AS_IT_IS
from benchmarks.report import duration, machine, save, times
from benchmarks.timing import Contender, Run, Unavailable, measure, ratio
from reproduction.files import read_json, write_atomically
from reproduction.measure.timing import seconds_of
from reproduction.pipeline.run import staging
from reproduction.workspace import project_root

__all__ = ["CASES", "Case", "Outcome", "case_rows", "check_case", "check_notebooks", "limited", "main", "tables"]

PROFILE = "cuda"
"""The quick profile with another device. Its parameters, results and figures are not kept."""

_LIMIT = 480.0
_FOR_TESTS, _FOR_BENCHMARK = 0.25, 0.35
"""Shares of the time: the tests may take so much, and so much is left to the benchmark."""


class Outcome(NamedTuple):
    """What became of one check.

    Attributes:
        name: of the check.
        verdict: `"passed"`, `"failed"`, or `"not finished"` in the time there was.
        seconds: that it took.
        said: its last line.
    """

    name: str
    verdict: str
    seconds: float
    said: str = ""


def limited(name: str, commands: list[list[str]], until: float) -> Outcome:
    """Run commands one after the other, each in a process group of its own that ends at `until`.

    Args:
        name: of the check.
        commands: programs with their arguments.
        until: on the clock of `time.monotonic`.
    """
    start, said = time.monotonic(), ""
    for command in commands:
        left = until - time.monotonic()
        if left <= 0:
            return Outcome(name, "not finished", time.monotonic() - start)
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=project_root(),
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            _kill(process)
            return Outcome(name, "not finished", time.monotonic() - start)
        except BaseException:  # such as Ctrl-C, which does not reach another session
            _kill(process)
            raise
        lines = [line for line in output.splitlines() if line.strip()] or [f"status {process.returncode}"]
        said = lines[-1][:200]
        if process.returncode:
            return Outcome(name, "failed", time.monotonic() - start, said)
    return Outcome(name, "passed", time.monotonic() - start, said)


def _kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def check_notebooks(device: str, until: float, at_once: int, only: tuple[str, ...] = ()) -> list[Outcome]:
    """Compute and draw the notebooks with the parameters of the quick profile, on another device.

    Args:
        device: such as `cuda`.
        until: see `limited`.
        at_once: how many run at the same time.
        only: their names; by default all that have a device.
    """
    root = project_root()
    sections = yaml.safe_load((root / "params" / "quick.yaml").read_text())
    chosen = {name: given for name, given in sections.items() if "device" in given and (not only or name in only)}
    parameters = root / "params" / f"{PROFILE}.yaml"
    moved = {name: {**given, "device": device} for name, given in chosen.items()}

    def check(name: str) -> Outcome:
        python = [sys.executable, "-m"]
        compute = [*python, "reproduction.pipeline.compute", name, "--profile", PROFILE, "--workers", "0"]
        draw = [*python, "reproduction.pipeline.run", f"notebooks/{name}.ipynb", "--profile", PROFILE]
        found = limited(name, [compute, draw], until)
        return found._replace(said="") if found.verdict == "passed" else found

    _forget(root)  # what a killed run has left would pass for results
    write_atomically(parameters, yaml.safe_dump(moved, sort_keys=False, allow_unicode=True))
    try:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(check, chosen))
    finally:
        _forget(root)


def _forget(root: Path) -> None:
    (root / "params" / f"{PROFILE}.yaml").unlink(missing_ok=True)
    for folder in (root / "results" / PROFILE, root / "figures" / PROFILE, staging(root, PROFILE, "x").parent):
        shutil.rmtree(folder, ignore_errors=True)


class Case(NamedTuple):
    """What is timed.

    Attributes:
        title: what is computed.
        problem: given whether it is to be small.
        tolerance: relative and absolute.
        gradient: how it is differentiated, if it is.
        batched: whether every row has steps of its own too.
        agreement: how far results may lie from those of torchdiffeq, relative to their length.
    """

    title: str
    problem: Callable[[bool], problems.Problem]
    tolerance: float
    gradient: contenders.GradientName | None = None
    batched: bool = False
    agreement: float = 5e-2


def _block(small: bool) -> problems.Problem:
    return problems.mnist_block(4 if small else 128)


# Those that say most come first, for there may be no time for the last.
CASES = (
    Case("2–50–2 network, batch 128, 50 outputs", problems.network, 1e-6),
    Case("MNIST block, batch 128, through the steps", _block, 1e-3, "direct"),
    Case("continuous flow, 64 units, batch 512, adjoint method", problems.cnf, 1e-5, "backsolve"),
    Case("10,000 Lorenz systems", larger_problems.lorenz, 1e-6, batched=True),
    Case("16–256–256–256–16 network, batch 1024, adjoint method", larger_problems.wide_network, 1e-4, "backsolve"),
    Case("flow in 64 dimensions, Hutchinson's trace", larger_problems.hutchinson_flow, 1e-4, "backsolve"),
    Case("2–50–2 network, gradients through the steps", problems.network, 1e-6, "direct"),
    Case("2–50–2 network, gradients by the adjoint method", problems.network, 1e-6, "backsolve"),
    # The adjoint of a network with kinks, at a tolerance of 1e-3.
    Case("MNIST block, batch 128, adjoint method", _block, 1e-3, "backsolve", agreement=0.2),
)


def case_rows(case: Case, device: torch.device, small: bool = False) -> list[dict[str, Any]]:
    """A row for each contender, timed in turn on the device: by events of CUDA where there is one."""
    problem, tolerance, gradient = _on(case.problem(small), device), case.tolerance, case.gradient
    ours = partial(contenders.ours, problem, "dopri5", tolerance, gradient)
    jax = partial(_on_its_gpu, device, contenders.diffrax(problem, "dopri5", gradient)(tolerance))
    entered: list[Contender] = [
        contenders.torchdiffeq(problem, "dopri5", tolerance, gradient),
        ours(),
        ours(name="neural_ode, compiled", compile=True),
        Contender("diffrax", jax, compiles=True),
    ]
    if case.batched:
        entered += [
            ours(name="neural_ode, per sample", batched=True),
            ours(name="neural_ode, per sample, compiled", batched=True, compile=True),
            contenders.torchode(problem, "dopri5", tolerance, "compile", "torchode, compiled"),
        ]
    if small:
        entered = [one for one in entered if not one.compiles]
    budget, rounds = (0.0, (1, 1)) if small else (4.0, (3, 30))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        found, skipped = measure(entered, budget, rounds, partial(_seconds, device))
    away = leave_out_others(found, skipped, "torchdiffeq", case.agreement)
    base = found.get("torchdiffeq")
    rows: list[dict[str, Any]] = []
    for name in (one.name for one in entered):
        row: dict[str, Any] = {"case": case.title, "contender": name}
        if name in skipped:
            rows.append(row | {"skipped": skipped[name]})
            continue
        row |= {"median": float(np.median(found[name].seconds)), "first_call": found[name].first_call}
        row |= {"nfe": found[name].nfe, "deviation": away[name]}
        rows.append(row | ({} if base is None else {"ratio": list(ratio(base.seconds, found[name].seconds))}))
    return rows


def _on(problem: problems.Problem, device: torch.device) -> problems.Problem:
    f, y0 = deepcopy(problem.f).to(device), tree_map(lambda x: x.to(device), problem.y0)
    return replace(problem, f=f, y0=y0, t=problem.t.to(device))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    if device.type != "cuda":
        return seconds_of(work, device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _on_its_gpu(device: torch.device, contender: Contender) -> Run:
    """JAX on the same device, in the precision of PyTorch."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # three quarters of the memory
    try:
        import jax
    except ImportError:
        raise Unavailable("JAX is not installed") from None
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    if device.type == "cuda" and jax.default_backend() != "gpu":
        raise Unavailable("this JAX sees no GPU")
    return contender.prepare()


def _judged(title: str, rows: list[dict[str, Any]], seconds: float) -> Outcome:
    """A case passes if all ways of this library were timed, and their results are right."""
    bad = [row for row in rows if row["contender"].startswith("neural_ode") and "skipped" in row]
    # Where compiling is of no use, the library says so, and that is no failure.
    bad = [row for row in bad if not row["skipped"].startswith(RUNS_AS_IT_IS)]
    said = "; ".join(f"{row['contender']}: {row['skipped']}" for row in bad)
    return Outcome(title, "failed" if bad or not rows else "passed", seconds, said[:200])


def check_case(number: int, device: str, until: float, small: bool) -> tuple[Outcome, list[dict[str, Any]]]:
    """Time a case in a process of its own, which can be stopped.

    Args:
        number: which of `CASES`.
        device: such as `cuda`.
        until: see `limited`.
        small: whether the problem is to be small.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", device, "--case", str(number)]
        command += ["--output", folder, *(["--quick"] if small else [])]
        outcome = limited(CASES[number].title, [command], until)
        file = Path(folder) / "gpu.json"
        if outcome.verdict != "passed" or not file.exists():
            return outcome, []
        rows: list[dict[str, Any]] = read_json(file, "run it again")["rows"]
    return _judged(outcome.name, rows, outcome.seconds), rows


def tables(found: dict[str, Any]) -> str:
    """What was found, in Markdown."""
    where, lines = found["machine"], ["# On a GPU", ""]
    lines += [f"`make gpu-check` on {where['device']}, PyTorch {where['versions']['torch']}.", ""]
    lines += ["| check | | seconds | |", "|---|---|---|---|"]
    lines += [f"| {o['name']} | {o['verdict']} | {o['seconds']:.0f} | {o['said']} |" for o in found["checks"]]
    names = list(dict.fromkeys(row["contender"] for row in found["rows"]))
    others = [name for name in names if name != "torchdiffeq"]
    lines += ["", "Times of torchdiffeq, and how many times as fast the others are:", ""]
    lines += [f"| work | torchdiffeq | {' | '.join(others)} |", "|---" * (2 + len(others)) + "|"]
    for title in dict.fromkeys(row["case"] for row in found["rows"]):
        rows = {row["contender"]: row for row in found["rows"] if row["case"] == title and "median" in row}
        first = duration(rows["torchdiffeq"]["median"]) if "torchdiffeq" in rows else "–"
        cells = [times(rows[n]["ratio"][0]) if "ratio" in rows.get(n, {}) else "–" for n in others]
        lines.append(f"| {title} | {first} | {' | '.join(cells)} |")
    skipped = [
        f"* {row['case']}, {row['contender']}: {row['skipped']}" for row in found["rows"] if "skipped" in row
    ]
    return "\n".join([*lines, *([""] if skipped else []), *skipped]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Check what the command line says; 0 if all passed, 1 if not, 2 without a device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="another one shows that the command itself works")
    parser.add_argument("--limit", type=float, default=_LIMIT, help="seconds for everything")
    parser.add_argument("--quick", action="store_true", help="one notebook, small problems, nothing compiled")
    parser.add_argument("--output", type=Path, help="folder for gpu.json and gpu.md; benchmarks/ by default")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)  # what `check_case` calls
    options = parser.parse_args(arguments)
    device, start = torch.device(options.device), time.monotonic()
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here, so there is nothing to check")
        return 2

    root = project_root()
    output = options.output or root / "benchmarks"
    known = machine() | {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"}
    found: dict[str, Any] = {"machine": known, "checks": [], "rows": []}
    if options.case is not None:
        torch.backends.cudnn.allow_tf32 = False  # as products of matrices are by default
        found["rows"] = case_rows(CASES[options.case], device, options.quick)
        save(output / "gpu.json", found)
        return 0

    def add(*outcomes: Outcome) -> None:
        for one in outcomes:
            print(f"{one.verdict:12} {one.name}, {one.seconds:.0f} s {one.said}".rstrip(), flush=True)
            found["checks"].append(one._asdict())
        save(output / "gpu.json", found)
        write_atomically(output / "gpu.md", tables(found))

    end = start + options.limit
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", "-p", "no:cacheprovider"]
    add(limited("tests marked gpu", [pytest], start + _FOR_TESTS * options.limit))
    only = ("10_poisson",) if options.quick else ()
    at_once = max(1, min(4, (os.cpu_count() or 1) // 2))
    add(*check_notebooks(options.device, end - _FOR_BENCHMARK * options.limit, at_once, only))
    for number in range(len(CASES)):
        outcome, rows = check_case(number, options.device, end, options.quick)
        found["rows"] += rows
        add(outcome)
    print(tables(found))
    return 0 if all(one["verdict"] == "passed" for one in found["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
