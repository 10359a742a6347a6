"""What is measured, and what was to be reached."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import contenders, larger_problems, problems, training
from benchmarks.timing import Contender, Interval, Measured, Run, measure, ratio

__all__ = ["CASES", "Case", "Goal", "case_rows", "deviation", "leave_out_others"]

_COMPILED = "neural_ode, compiled"
_EITHER = ("neural_ode", _COMPILED)
_CHECKPOINT, _CHECKPOINT_COMPILED = "recursive_checkpoint", "recursive_checkpoint, compiled"
_PER_SAMPLE, _PER_SAMPLE_COMPILED = "neural_ode, per sample", "neural_ode, per sample, compiled"
_DIFFRAX_PER_SAMPLE = "diffrax, per sample"
_ROUNDS = (5, 60)


@dataclass(frozen=True)
class Goal:
    """A bound on how one contender compares with another.

    Attributes:
        sentence: the goal in words.
        of: whose time it is; of several the fastest.
        to: what it is compared with; of several the fastest.
        kind: what is bounded: `"speedup"`, time of `to` over time of `of`, from below; from above `"cost"`, the
            inverse; `"cost per evaluation"`, that of one evaluation of the dynamics; `"difference"`, in seconds.
        bound: the bound.
    """

    sentence: str
    of: tuple[str, ...]
    to: tuple[str, ...]
    kind: Literal["speedup", "cost", "cost per evaluation", "difference"]
    bound: float

    def judge(self, found: Mapping[str, Measured]) -> dict[str, Any]:
        """The goal, the measurement with its interval, and whether the goal is met."""
        verdict: dict[str, Any] = {"goal": self.sentence, "kind": self.kind, "bound": self.bound}
        of, to = _fastest(found, self.of), _fastest(found, self.to)
        if of is None or to is None:
            missing = self.of if of is None else self.to
            return verdict | {"verdict": "not measured", "missing": " or ".join(missing)}
        measured = self._measured(found[of], found[to])
        met = measured.estimate >= self.bound if self.kind == "speedup" else measured.estimate <= self.bound
        return verdict | {"of": of, "to": to, "measured": list(measured), "verdict": "met" if met else "missed"}

    def _measured(self, of: Measured, to: Measured) -> Interval:
        if self.kind == "speedup":
            return ratio(to.seconds, of.seconds)
        if self.kind == "cost per evaluation":
            assert of.nfe is not None
            assert to.nfe is not None
            return ratio(of.seconds / of.nfe, to.seconds / to.nfe)
        return ratio(of.seconds, to.seconds, difference=self.kind == "difference")


def _fastest(found: Mapping[str, Measured], names: tuple[str, ...]) -> str | None:
    present = [name for name in names if name in found]
    return min(present, key=lambda name: float(np.median(found[name].seconds)), default=None)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        title: what is computed.
        baseline: the contender that ratios are relative to.
        contenders: who takes part, given whether the problem is to be small.
        agreement: how far results may lie from those of the baseline, relative to their length.
        goals: what was to be reached.
        budget: seconds for all rounds together.
        rounds: fewest and most rounds.
    """

    title: str
    baseline: str
    contenders: Callable[[bool], list[Contender]]
    agreement: float
    goals: tuple[Goal, ...]
    budget: float = 8.0
    rounds: tuple[int, int] = _ROUNDS


def case_rows(name: str, threads: int, quick: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure a case.

    Returns:
        A row for each contender, measured or left out, and one for each goal.
    """
    case = CASES[name]
    entered = case.contenders(quick)
    known = {"case": name, "threads": threads}
    left_out = {c.name: "left out by --quick: compiles for long" for c in entered if quick and c.compiles}
    taking_part = [c for c in entered if c.name not in left_out]
    found, skipped = measure(taking_part, 0.0 if quick else case.budget, (2, 2) if quick else case.rounds)
    skipped |= left_out
    base = found.get(case.baseline)
    away = leave_out_others(found, skipped, case.baseline, case.agreement)
    rows: list[dict[str, Any]] = []
    for contender in (c.name for c in entered):
        row = known | {"contender": contender}
        if contender not in found:
            rows.append(row | {"skipped": skipped[contender]})
            continue
        measured = found[contender]
        quartiles = np.quantile(measured.seconds, [0.25, 0.5, 0.75])
        row |= dict(zip(("q1", "median", "q3"), map(float, quartiles), strict=True))
        row |= {"rounds": len(measured.seconds), "first_call": measured.first_call, "nfe": measured.nfe}
        if base is not None:
            row |= {"ratio": list(ratio(base.seconds, measured.seconds)), "deviation": away[contender]}
        rows.append(row)
    return rows, [known | goal.judge(found) for goal in case.goals]


def leave_out_others(
    found: dict[str, Measured], skipped: dict[str, str], baseline: str, agreement: float
) -> dict[str, float | None]:
    """Move contenders with another result from `found` to `skipped`: their times say nothing.

    Args:
        found, skipped: see `measure`; changed in place.
        baseline: the contender whose result is compared with.
        agreement: how far from it results may lie, relative to its length.

    Returns:
        How far all of them lie from it; `None` where that cannot be said.
    """
    base = found.get(baseline)
    away = {n: None if base is None else deviation(m.values, base.values) for n, m in found.items()}
    for contender, distance in away.items():
        if distance is not None and not distance <= agreement:
            skipped[contender] = f"the result is {distance:.2g} away from that of {baseline}"
            del found[contender]
    return away


def deviation(values: list[Any], reference: list[Any]) -> float | None:
    """The distance from the reference relative to its length, `None` where the results are of other kinds."""
    if [v.shape for v in values] != [r.shape for r in reference] or not values:
        return None
    flat, exact = (np.concatenate([x.ravel() for x in xs]) for xs in (values, reference))
    return float(np.linalg.norm(flat - exact) / np.linalg.norm(exact))


def _pair(problem: problems.Problem, tolerance: float, gradient: Any) -> list[Contender]:
    """torchdiffeq, this library, and this library compiled."""
    return [
        contenders.torchdiffeq(problem, "dopri5", tolerance, gradient),
        contenders.ours(problem, "dopri5", tolerance, gradient),
        contenders.ours(problem, "dopri5", tolerance, gradient, name=_COMPILED, compile=True),
    ]


def _forward(small: bool) -> list[Contender]:
    problem, tolerance = problems.network(small), 1e-6
    compiled_f = "torchdiffeq, f compiled"
    return [
        *_pair(problem, tolerance, None),
        contenders.torchdiffeq(problem, "dopri5", tolerance, name=compiled_f, compile_dynamics=True),
        contenders.compiled_dynamics(problem, lambda: _evaluations(problem, tolerance)),
        contenders.diffrax(problem, "dopri5")(tolerance),
        *_torchode(problem, tolerance, script=True),
    ]


def _torchode(
    problem: problems.Problem, tolerance: float, gradient: Literal["direct"] | None = None, script: bool = False
) -> list[Contender]:
    """torchode as it is and compiled, and where it can be a script."""
    enter = partial(contenders.torchode, problem, "dopri5", tolerance, gradient=gradient)
    scripted = [enter("script", "torchode, TorchScript")] if script else []
    return [enter("eager"), *scripted, enter("compile", "torchode, compiled")]


def _network_gradient(gradient: contenders.GradientName) -> Callable[[bool], list[Contender]]:
    def build(small: bool) -> list[Contender]:
        problem = problems.network(small)
        contestants = [*_pair(problem, 1e-6, gradient), contenders.diffrax(problem, "dopri5", gradient)(1e-6)]
        if gradient == "direct":
            contestants += _torchode(problem, 1e-6, gradient)
        if gradient == "backsolve":
            exact = partial(contenders.ours, problem, "dopri5", 1e-6, "recursive_checkpoint")
            contestants += [exact(name=_CHECKPOINT), exact(name=_CHECKPOINT_COMPILED, compile=True)]
        return contestants

    return build


def _mnist_direct(small: bool) -> list[Contender]:
    problem, tolerance = problems.mnist_block(16 if small else 128), 1e-3
    alone = contenders.gradients_alone(problem, lambda: _evaluations(problem, tolerance))
    return [*_with_diffrax(problem, tolerance, "direct"), alone]


def _with_diffrax(
    problem: problems.Problem, tolerance: float, gradient: contenders.GradientName | None
) -> list[Contender]:
    """`_pair`, and diffrax."""
    return [
        *_pair(problem, tolerance, gradient),
        contenders.diffrax(problem, "dopri5", gradient)(tolerance),
    ]


def _evaluations(problem: problems.Problem, tolerance: float) -> int:
    nfe = contenders.ours(problem, "dopri5", tolerance).prepare()()[1]
    assert nfe is not None
    return nfe


def _per_sample(ends_only: bool) -> Callable[[bool], list[Contender]]:
    """At all output times of the problem, or at the last one, which leaves the cost of the steps."""

    def build(small: bool) -> list[Contender]:
        problem, tolerance = problems.van_der_pol(small), 1e-6
        if ends_only:
            problem = replace(problem, t=problem.t[[0, -1]])
        return _steps_for_each(problem, tolerance)

    return build


def _steps_for_each(problem: problems.Problem, tolerance: float) -> list[Contender]:
    """All who can give every sample steps of its own, and joint steps."""
    ours = partial(contenders.ours, problem, "dopri5", tolerance)
    return [
        *_with_diffrax(problem, tolerance, None),
        ours(name=_PER_SAMPLE, batched=True),
        ours(name=_PER_SAMPLE_COMPILED, batched=True, compile=True),
        contenders.diffrax(problem, "dopri5", name=_DIFFRAX_PER_SAMPLE, batched=True)(tolerance),
        *_torchode(problem, tolerance, script=True),
    ]


def _small_system(small: bool) -> list[Contender]:
    problem, tolerance = problems.lotka_volterra(small), 1e-6
    return [
        *_with_diffrax(problem, tolerance, None),
        *_torchode(problem, tolerance, script=True),
        contenders.scipy(problem, "RK45", tolerance),
    ]


def _brusselator(small: bool) -> list[Contender]:
    """Explicit steps, which stability keeps short, and SciPy's implicit ones with a sparse matrix.

    Implicit methods with a full matrix of 2048 × 2048 are left out: `kvaerno5` takes half a minute.
    """
    problem, tolerance = larger_problems.brusselator(small), 1e-6
    return [
        *_with_diffrax(problem, tolerance, None),
        contenders.scipy(problem, "RK45", tolerance),
        contenders.scipy(
            problem,
            "BDF",
            tolerance,
            _SCIPY_IMPLICIT,
            jac_sparsity=lambda: larger_problems.brusselator_pattern(problem.parts[0].shape[-1]),
        ),
    ]


_SCIPY_IMPLICIT = "SciPy, BDF with a sparse Jacobian"


def _interpreter(name: str, code: str, environment: Callable[[], Mapping[str, str]]) -> Contender:
    """A process of its own that runs `code`."""

    def prepare() -> Run:
        def run() -> tuple[Any, int | None]:
            given = {**os.environ, **environment()}
            subprocess.run([sys.executable, "-c", code], check=True, env=given, cwd=_ROOT)
            return (), None

        return run

    return Contender(name, prepare)


def _imports(small: bool) -> list[Contender]:
    """With byte code on disk, as it is from the second import of an installation on."""
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": _scratch()}
    codes = ("import torch, numpy", "import torch, numpy, neural_ode")
    return [_interpreter(code, code, lambda: kept) for code in codes]


_FIRST_SOLVE = """
import torch
from benchmarks.problems import network
from neural_ode import solve
problem = network()
with torch.no_grad():
    stats = solve(problem.f, problem.y0, problem.t, rtol=1e-6, atol=1e-6{}).stats
"""


def _first_calls(small: bool) -> list[Contender]:
    """A fresh process each; what PyTorch compiles it keeps on disk for the next one."""
    kept, eager = _scratch(), _FIRST_SOLVE.format("")
    compiled = _FIRST_SOLVE.format(", compile=True") + "assert stats.compiled == 'solve'\n"
    if small:  # compiles for long
        compiled = eager
    return [
        _interpreter("neural_ode", eager, dict),
        _interpreter("compiled, nothing on disk", compiled, lambda: {_ON_DISK: _scratch()}),
        _interpreter("compiled again", compiled, lambda: {_ON_DISK: kept}),
    ]


_ROOT = Path(__file__).resolve().parents[1]
_ON_DISK = "TORCHINDUCTOR_CACHE_DIR"
_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends."""


def _scratch() -> str:
    _folders.append(tempfile.TemporaryDirectory())
    return _folders[-1].name


def _faster(sentence: str, bound: float, of: tuple[str, ...] = _EITHER) -> Goal:
    return Goal(sentence, of, ("torchdiffeq",), "speedup", bound)


_STEP_FOR_EACH = tuple(
    Goal(
        f"{kind}: a step for each sample costs at most 1.25 times a joint step",
        (of,),
        (to,),
        "cost per evaluation",
        1.25,
    )
    for kind, of, to in (("eager", _PER_SAMPLE, "neural_ode"), ("compiled", _PER_SAMPLE_COMPILED, _COMPILED))
)

_TORCHODE = ("torchode", "torchode, TorchScript", "torchode, compiled")

_FOR_EACH = tuple(
    Goal(f"faster than {peer}", (_PER_SAMPLE, _PER_SAMPLE_COMPILED), names, "speedup", 1.0)
    for peer, names in (("torchode", _TORCHODE), ("diffrax under vmap", (_DIFFRAX_PER_SAMPLE,)))
)


def _level(*of: str, peer: str = "diffrax") -> Goal:
    """No peer is faster."""
    return Goal(f"at least as fast as {peer}", of or _EITHER, (peer,), "speedup", 1.0)


_WORTH_IT = Goal("compiled at least as fast as eager", (_COMPILED,), ("neural_ode",), "speedup", 1.0)

CASES: dict[str, Case] = {
    "forward": Case(
        "2–50–2 network, batch 128, float32, dopri5 at 1e-6, 50 outputs",
        "torchdiffeq",
        _forward,
        1e-2,
        (
            _faster("eager at least 1.8 times as fast as torchdiffeq", 1.8, ("neural_ode",)),
            _faster("compiled at least 8 times as fast as torchdiffeq", 8.0, (_COMPILED,)),
            Goal(
                "compiled at most 1.15 times the evaluations of f alone",
                (_COMPILED,),
                ("f alone, compiled",),
                "cost",
                1.15,
            ),
            _level(),
        ),
    ),
    "gradient-direct": Case(
        "the same with gradients of initial values and parameters, through the steps",
        "torchdiffeq",
        _network_gradient("direct"),
        5e-2,
        (_faster("compiled at least 5 times as fast as torchdiffeq", 5.0, (_COMPILED,)), _level()),
    ),
    "gradient-backsolve": Case(
        "the same with gradients by the adjoint method, and by recursive_checkpoint",
        "torchdiffeq",
        _network_gradient("backsolve"),
        5e-2,
        (
            _faster("compiled at least 15 times as fast as odeint_adjoint", 15.0, (_COMPILED,)),
            _faster("recursive_checkpoint at least 40 times as fast", 40.0, (_CHECKPOINT_COMPILED,)),
            _level(),
        ),
        budget=15.0,
    ),
    "mnist-direct": Case(
        "ODE block of the MNIST network, batch 128, dopri5 at 1e-3, gradients through the steps",
        "torchdiffeq",
        _mnist_direct,
        5e-2,
        (_faster("at least 1.5 times as fast as torchdiffeq", 1.5), _level()),
        budget=10.0,
    ),
    "mnist-backsolve": Case(
        "the same with gradients by the adjoint method",
        "torchdiffeq",
        lambda small: _with_diffrax(problems.mnist_block(16 if small else 128), 1e-3, "backsolve"),
        0.2,  # the adjoint of a network with kinks, at a tolerance of 1e-3
        (_faster("at least 1.5 times as fast as odeint_adjoint", 1.5), _level()),
        budget=10.0,
    ),
    "cnf": Case(
        "continuous normalizing flow, 64 units, batch 512, dopri5 at 1e-5, gradients by the adjoint method",
        "torchdiffeq",
        lambda small: _with_diffrax(problems.cnf(small), 1e-5, "backsolve"),
        5e-2,
        (_faster("at least 2.5 times as fast as odeint_adjoint", 2.5), _level()),
        budget=10.0,
    ),
    "cnf-training": Case(
        "three iterations of torchdiffeq's CNF example with this library's model, whose trace needs no autograd: "
        "64 units, two circles, batch 512, t from 0 to 10, 1e-5",
        "torchdiffeq",
        training.cnf_contenders,
        1e-3,
        (_faster("at least 8 times as fast as the example", 8.0),),
        budget=15.0,
        rounds=(5, 12),
    ),
    "cnf-import": Case(
        "the same with the example's own model: nothing is changed but the import",
        "torchdiffeq",
        training.cnf_import_contenders,
        1e-3,
        (_faster("at least 1.5 times as fast by the import alone", 1.5, ("neural_ode",)),),
        budget=15.0,
        rounds=(5, 12),
    ),
    "latent-ode-training": Case(
        "three iterations of torchdiffeq's latent ODE example: 1000 spirals, 100 times, through the steps",
        "torchdiffeq",
        training.latent_ode_contenders,
        1e-3,
        (_faster("at least 5 times as fast as the example", 5.0),),
        budget=15.0,
        rounds=(5, 12),
    ),
    "latent-ode-adjoint": Case(
        "the same with gradients by the adjoint method",
        "torchdiffeq",
        training.latent_ode_adjoint_contenders,
        1e-3,
        (
            _faster("by the adjoint at least 5 times as fast as the example", 5.0),
            _faster("recursive_checkpoint at least 5 times as fast as the example", 5.0, (_CHECKPOINT,)),
        ),
        budget=30.0,
        rounds=(3, 8),
    ),
    "per-sample": Case(
        "Van der Pol with μ = 2, batch 256, float64, dopri5 at 1e-6, 50 outputs, steps for each sample",
        "torchdiffeq",
        _per_sample(ends_only=False),
        1e-2,
        (*_STEP_FOR_EACH, *_FOR_EACH),
    ),
    "per-sample-steps": Case(
        "the same with one output, at the end",
        "torchdiffeq",
        _per_sample(ends_only=True),
        1e-2,
        (*_STEP_FOR_EACH, *_FOR_EACH),
    ),
    "per-sample-lorenz": Case(
        "10,000 Lorenz systems, float64, dopri5 at 1e-6, one output, steps for each system",
        "torchdiffeq",
        lambda small: _steps_for_each(larger_problems.lorenz(small), 1e-6),
        1e-2,
        (_level(_COMPILED), *_FOR_EACH),
        budget=15.0,
        rounds=(3, 12),
    ),
    "small-system": Case(
        "Lotka–Volterra, 2 numbers, float64, dopri5 at 1e-6, 21 outputs",
        "torchdiffeq",
        _small_system,
        1e-2,
        (_level(), _level(peer="SciPy"), _WORTH_IT),
    ),
    "wide-network": Case(
        "16–256–256–256–16 network, batch 1024, dopri5 at 1e-4, gradients by the adjoint method",
        "torchdiffeq",
        lambda small: _with_diffrax(larger_problems.wide_network(small), 1e-4, "backsolve"),
        5e-2,
        (_level(), _WORTH_IT),
        budget=20.0,
        rounds=(3, 8),
    ),
    "hutchinson-flow": Case(
        "continuous flow in 64 dimensions, Hutchinson's trace, batch 256, dopri5 at 1e-4, adjoint method",
        "torchdiffeq",
        lambda small: _with_diffrax(larger_problems.hutchinson_flow(small), 1e-4, "backsolve"),
        5e-2,
        (_level(), _WORTH_IT),
        budget=20.0,
        rounds=(3, 8),
    ),
    "brusselator": Case(
        "Brusselator on a grid of 32 × 32, float64, dopri5 at 1e-6, t from 0 to 1",
        "torchdiffeq",
        _brusselator,
        1e-3,
        (
            _level(),
            Goal(
                "at least as fast as SciPy, explicit or implicit",
                _EITHER,
                ("SciPy", _SCIPY_IMPLICIT),
                "speedup",
                1.0,
            ),
        ),
        budget=20.0,
        rounds=(3, 8),
    ),
    "first-call": Case(
        "a fresh process that solves once: 2–50–2 network",
        "neural_ode",
        _first_calls,
        1.0,
        (
            Goal(
                "compiled again costs a second process at most 5 s",
                ("compiled again",),
                ("neural_ode",),
                "difference",
                5.0,
            ),
        ),
        budget=0.0,
        rounds=(2, 2),
    ),
    "import": Case(
        "import in a fresh interpreter",
        "import torch, numpy",
        _imports,
        1.0,
        (
            Goal(
                "at most 0.1 s on top of torch and numpy",
                ("import torch, numpy, neural_ode",),
                ("import torch, numpy",),
                "difference",
                0.1,
            ),
        ),
        budget=20.0,
        rounds=(3, 9),
    ),
}
