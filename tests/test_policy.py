"""One rule for the steps: worked out by hand, and the same attempts in every loop."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from neural_ode import IntegralController, NonFiniteError, PIDController, Statistics, solve
from neural_ode.compiled.compiler import compiled_so_far
from neural_ode.control.arithmetic import FLOATS, namespace
from neural_ode.control.controllers import integral_factor
from neural_ode.control.policy import Proposal, StepPolicy, stretch_for
from neural_ode.control.tolerance import Tolerance
from neural_ode.methods import METHODS, ExplicitRungeKutta
from neural_ode.problem.norms import rms_norm
from neural_ode.stepping.per_sample import Sweep, per_sample
from neural_ode.stepping.settings import SolverSettings

EXPLICIT = [name for name, m in METHODS.items() if isinstance(m, ExplicitRungeKutta) and m.adaptive]
INF, NAN = math.inf, math.nan

# The rule ---------------------------------------------------------------------------------------------------------


def lifted(xp: Any, x: float) -> Any:
    """A number as the loops have it: a float, an array of one row, or a tensor."""
    if xp is FLOATS:
        return x
    return np.array([x]) if xp is np else torch.tensor(x, dtype=torch.float64)


def lowered(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(lowered, x))
    return x.item() if isinstance(x, np.ndarray | Tensor) else x


def policy(
    xp: Any, direction: float = 1.0, shortest: float = 0.0, longest: float = INF, stretch: float = 1.0
) -> Any:
    limits = (direction, shortest, longest, stretch)
    if xp is not torch:
        return StepPolicy(xp, IntegralController().factor, *limits)
    control = [lifted(torch, x) for x in (0.9, 10.0, 0.2)]
    return StepPolicy(
        xp, lambda err, order, _: integral_factor(err, order, *control), *(lifted(xp, x) for x in limits)
    )


every_kind = pytest.mark.parametrize("xp", [FLOATS, np, torch], ids=["floats", "arrays", "tensors"])


@every_kind
@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize(
    ("limits", "numbers", "expected"),
    [
        ({}, (1, 0.5, 3), (0.5, False, 0.5, 1.5, True)),
        ({"shortest": 0.75}, (1, 0.5, 3), (0.75, False, 0.75, 1.75, True)),
        ({"longest": 0.25}, (1, 0.5, 3), (0.25, False, 0.25, 1.25, True)),
        ({"shortest": 0.75, "longest": 0.25}, (1, 0.5, 3), (0.25, False, 0.25, 1.25, True)),
        ({}, (1, 4, 3), (4, True, 2, 3, True)),  # cut
        ({}, (1, 2, 3), (2, True, 2, 3, True)),
        ({}, (1, 1.99, 3), (1.99, False, 1.99, 2.99, True)),  # leaves a sliver
        ({"stretch": 1.01}, (1, 1.99, 3), (1.99, True, 2, 3, True)),  # stretched over it
        ({"stretch": 1.01}, (1, 1.98, 3), (1.98, False, 1.98, 2.98, True)),  # too much is left
        ({}, (1, 1e-17, 3), (1e-17, False, 1e-17, 1, False)),
        ({}, (3, 1, 3), (1, True, 0, 3, False)),
        ({"shortest": 1e-3}, (1, NAN, 3), (NAN, False, NAN, NAN, False)),
        ({}, (1, 0.5, INF), (0.5, False, 0.5, 1.5, True)),
        ({}, (1, INF, 3), (INF, True, 2, 3, True)),
    ],
)
def test_a_proposal(xp: Any, direction: float, limits: dict[str, float], numbers: Any, expected: Any) -> None:
    now, h, stop = (lifted(xp, direction * x) for x in numbers)
    found = lowered(policy(xp, direction, **limits).propose(now, h, stop))
    planned, reaches, h, after, moves = expected
    signed = (direction * planned, reaches, direction * h, direction * after, moves)
    assert tuple(found) == pytest.approx(signed, rel=1e-15, nan_ok=True)


def proposal(xp: Any, planned: float, h: float | None = None, reaches: bool | None = None) -> Proposal[Any]:
    h = planned if h is None else h
    reaches = h != planned if reaches is None else reaches
    flag: Any = reaches if xp is FLOATS else lifted(xp, reaches) == 1
    return Proposal(lifted(xp, planned), flag, lifted(xp, h), lifted(xp, h), flag)


@every_kind
@pytest.mark.parametrize(
    ("step", "err", "expected"),
    [
        ((1.0,), 0.5, (0.5, True, False)),
        ((1.0,), 1.0, (1.0, True, False)),
        ((1.0,), 1.5, (1.5, False, False)),
        ((1.0,), INF, (INF, False, False)),
        ((1.0,), NAN, (NAN, False, False)),
        ((0.5,), 0.25, (0.25, True, False)),  # one of the shortest
        ((0.5,), 1.5, (1.0, True, False)),
        ((-0.5,), 1.5, (1.0, True, False)),
        ((0.5,), INF, (INF, False, True)),
        ((-0.5,), NAN, (NAN, False, True)),
        ((1.0, 0.25), 1.5, (1.0, True, False)),  # cut to less
        ((1.0, 0.25), NAN, (NAN, False, True)),
        ((0.5, 0.505), 1.5, (1.0, True, False)),  # stretched to more
        ((0.505, 0.51), 1.5, (1.5, False, False)),
    ],
)
def test_a_judgement(xp: Any, step: Any, err: float, expected: Any) -> None:
    found = lowered(policy(xp, shortest=0.5).judge(proposal(xp, *step), lifted(xp, err)))
    assert found == pytest.approx(expected, nan_ok=True)


@every_kind
@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize(
    ("step", "passed", "err", "expected"),
    [
        ((2.0,), True, 2.0**-10, 7.2),  # order 5: 0.9 · 4
        ((2.0,), True, 0.0, 20.0),
        ((2.0,), True, 1.0, 2.0),
        ((2.0,), False, 32.0, 0.9),
        ((2.0,), False, 243.0, 0.6),
        ((2.0,), False, INF, 0.4),
        ((2.0,), False, NAN, 0.4),
        ((2.0, 0.5), True, 0.9, 2.0),  # cut short: as planned before
        ((2.0, 0.5), True, 2.0**-30, 5.0),
        ((2.0, 0.5), False, 32.0, 0.225),
        ((2.0, 2.0, True), True, 1.0, 2.0),
        ((2.0, 2.02), True, 1.0, 2.02),
    ],
)
def test_the_length_after(xp: Any, direction: float, step: Any, passed: bool, err: float, expected: float) -> None:
    made = proposal(xp, *(direction * x if isinstance(x, float) else x for x in step))
    number, done = lifted(xp, err), passed if xp is FLOATS else lifted(xp, passed) == 1
    h, earlier = policy(xp, direction).go_on(made, done, number, 5, tuple(lifted(xp, x) for x in (0.25, 0.75)))
    assert lowered(h) == pytest.approx(direction * expected, rel=1e-14)
    assert lowered(earlier) == (err if passed else INF, 0.25)


@every_kind
@pytest.mark.parametrize(("reaches", "expected"), [(False, 1.0), (True, 2.0)])
def test_only_a_step_that_was_cut_tells_nothing(xp: Any, reaches: bool, expected: float) -> None:
    """A controller that wants the next step shorter, though the last one passed, gets it."""
    rule = replace(policy(xp), factor=lambda *_: lifted(xp, 0.5))
    step, passed = proposal(xp, 2.0, 2.0, reaches), lifted(xp, 1.0) == 1
    assert lowered(rule.go_on(step, passed, lifted(xp, 0.5), 5, ())[0]) == expected


def test_the_last_step_is_stretched_where_no_longest_was_asked_for() -> None:
    assert stretch_for(INF) == 1.01
    assert stretch_for(1e300) == 1.0


LENGTHS = st.one_of(st.sampled_from([0.0, INF, NAN, 1e-320]), st.floats(1e-12, 1e6))
ERRORS = st.one_of(st.sampled_from([0.0, 5e-324, 1.0, INF, NAN, 1e300]), st.floats(0, 2), st.floats(0, 1e4))


@given(
    planned=LENGTHS,
    span=st.floats(1e-6, 1e3),
    shortest=st.sampled_from([0.0, 1e-3, 1.0]),
    err=ERRORS,
    order=st.integers(1, 9),
    direction=st.sampled_from([1.0, -1.0]),
    stretch=st.sampled_from([1.0, 1.01]),
)
def test_floats_arrays_and_tensors(
    planned: float, span: float, shortest: float, err: float, order: int, direction: float, stretch: float
) -> None:
    found = []
    for xp in (FLOATS, np, torch):
        rule = policy(xp, direction, shortest, 10.0, stretch)
        step = rule.propose(*(lifted(xp, direction * x) for x in (0.25, planned, 0.25 + span)))
        counts, passed, lost = rule.judge(step, lifted(xp, err))
        found.append(lowered((*step, counts, passed, lost, *rule.go_on(step, passed, counts, order, ())[:1])))
    assert found[1] == pytest.approx(found[0], rel=1e-14, nan_ok=True)
    assert found[2] == pytest.approx(found[0], rel=1e-14, nan_ok=True)


@given(errs=st.lists(ERRORS, min_size=1, max_size=3), order=st.integers(1, 9), gains=st.sampled_from([0.0, 0.1]))
@example(errs=[0.0, 0.0, 0.0], order=1, gains=0.1)
@example(errs=[0.5, 1.5, 0.5], order=3, gains=0.1)
def test_factors_of_floats_and_arrays(errs: list[float], order: int, gains: float) -> None:
    for control in (IntegralController(), PIDController(kD=gains)):
        one = control.factor(errs[0], order, errs[1:])
        assert type(one) is float
        many = control.factor(np.array([errs[0], 1.0]), order, [np.array([e, 0.5]) for e in errs[1:]])
        assert many[0] == pytest.approx(one, rel=1e-14)
        assert control.dfactor <= one <= control.ifactor


def test_where_the_functions_are_found() -> None:
    assert [namespace(x) for x in (1.0, np.ones(1), torch.ones(()))] == [FLOATS, np, torch]


# The same attempts in a joint solve and for a row on its own ------------------------------------------------------


@contextmanager
def attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, float, bool]]]:
    """The times, lengths and fates of all steps tried by the loops in Python.

    Steps are made with their lengths as tensors, as those of rows are: small errors are not rounded differently.
    """
    seen: list[tuple[float, float, bool]] = []
    go_on, make = StepPolicy.go_on, ExplicitRungeKutta.step

    def watched(self: Any, step: Any, passed: Any, *rest: Any) -> Any:
        seen.append(lowered((step.after, step.h, passed)))
        return go_on(self, step, passed, *rest)

    def made(self: Any, f: Any, t: Tensor, y: Tensor, h: Any, carry: Any) -> Any:
        return make(self, f, t, y, torch.as_tensor(h, dtype=y.dtype), carry)

    with monkeypatch.context() as patch:
        patch.setattr(StepPolicy, "go_on", watched)
        patch.setattr(ExplicitRungeKutta, "step", made)
        yield seen


def same_attempts(f: Any, y0: Tensor, t: Any, **how: Any) -> list[tuple[float, float, bool]]:
    """Those of the joint solve, after a comparison with a batch of one row."""
    found, patch = [], pytest.MonkeyPatch()
    for batched in (False, True):
        with attempts(patch) as seen, torch.no_grad():
            stats = solve(f, y0, t, batched=batched, **how).stats
        assert [stats.accepted, stats.rejected] == [sum(x[2] is fate for x in seen) for fate in (True, False)]
        found.append((seen, stats))
    (joint, stats), (row, rows) = found
    assert len(row) == len(joint)
    for (after, h, passed), (expected_after, expected, expected_passed) in zip(row, joint, strict=True):
        assert passed == expected_passed
        assert h == pytest.approx(expected, rel=1e-6)
        assert after == pytest.approx(expected_after, rel=1e-6)
    assert (stats.accepted, stats.rejected) == (rows.accepted, rows.rejected)
    assert stats.step_sizes == [h for _, h, passed in joint if passed]
    return joint


def column(t: Tensor) -> Tensor:
    """Times, one or one for each row, beside states of shape (rows, entries)."""
    return t.reshape(-1, 1)


def burst(t: Tensor, y: Tensor) -> Tensor:
    """Smooth, but for a short time around 1."""
    return 5 * torch.exp(-((10 * (column(t) - 1)) ** 2)) - y


def root(t: Tensor, y: Tensor) -> Tensor:
    """y' = -√y: y = (1 - t/2)² from 1; no numbers below zero."""
    return -torch.sqrt(y)


def cubic(t: Tensor, y: Tensor) -> Tensor:
    return -(y**3)


def hopeless(error: Tensor) -> Tensor:
    """The size of an error, where it is not far too large."""
    size = error.square().mean().sqrt()
    return torch.where(size > 2, INF, size)


ONE = torch.ones(1, 2, dtype=torch.float64)

CASES: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "rejections": (burst, ONE, [0.0, 3.0], {}),
    "reverse": (burst, ONE, [3.0, 2.0, 0.0], {}),
    "first step": (burst, ONE, [0.0, 3.0], {"first_step": 0.05}),
    "first step past the end": (burst, ONE, [0.0, 0.5], {"first_step": 2.0}),
    "shortest step": (burst, ONE, [0.0, 3.0], {"min_step": 0.11}),
    "shortest step, reverse": (burst, ONE, [3.0, 0.0], {"min_step": 0.11}),
    "shortest step over a sliver": (burst, ONE, [0.7, 0.951], {"min_step": 0.25, "first_step": 0.25}),
    "longest step": (burst, ONE, [0.0, 3.0], {"max_step": 0.07}),
    "one length": (burst, ONE, [0.0, 3.0], {"min_step": 0.07, "max_step": 0.07}),
    "a sliver": (burst, ONE, [0.0, 0.00201], {"first_step": 0.002}),
    "a sliver, with a longest step": (burst, ONE, [0.0, 0.00201], {"first_step": 0.002, "max_step": 0.002}),
    "out of the domain": (root, ONE, [0.0, 1.9], {"first_step": 1.9}),
    "out of the domain, reverse": (lambda t, y: -root(t, y), ONE, [0.0, -1.9], {"first_step": 1.9}),
    "infinite errors": (burst, ONE, [0.0, 3.0], {"norm": hopeless, "first_step": 1.0}),
    "large errors": (cubic, 30 * ONE, [0.0, 0.1], {"first_step": 0.01}),
    "PI": (burst, ONE, [0.0, 3.0], {"controller": PIDController()}),
    "PID out of the domain": (root, ONE, [0.0, 1.9], {"first_step": 1.9, "controller": PIDController(kD=0.1)}),
    "limits of the factor": (burst, ONE, [0.0, 3.0], {"controller": IntegralController(0.8, 2.0, 0.5)}),
}


@pytest.mark.parametrize("method", EXPLICIT)
@pytest.mark.parametrize("case", CASES)
def test_a_row_on_its_own(case: str, method: str) -> None:
    f, y0, t, how = CASES[case]
    joint = same_attempts(f, y0, t, method=method, rtol=1e-4, atol=1e-4, **how)
    lengths = [abs(h) for _, h, _ in joint]
    if "shortest" in case:
        assert all(passed for (_, _, passed), h in zip(joint, lengths, strict=True) if h <= how["min_step"])
        assert min(lengths[:-1], default=1) >= how["min_step"]
    if "longest" in case or case == "one length":
        assert max(lengths) <= how["max_step"] * (1 + 1e-12)
    if case in {"rejections", "reverse", "out of the domain", "infinite errors", "large errors", "PI"}:
        assert not all(passed for _, _, passed in joint)
    if case in {"shortest step over a sliver", "a sliver"}:
        assert len(joint) == 1


@given(data=st.data())
def test_any_problem(data: st.DataObject) -> None:
    entries = st.floats(-2, 2, width=16)
    matrix = torch.tensor([[data.draw(entries) for _ in range(2)] for _ in range(2)], dtype=torch.float64)
    bend, pace = data.draw(st.floats(0, 2, width=16)), data.draw(st.floats(0, 9, width=16))

    def f(t: Tensor, y: Tensor) -> Tensor:
        return y @ matrix + torch.sin(pace * column(t)) - bend * torch.sin(3 * y)

    controllers = [IntegralController(), PIDController(), IntegralController(0.8, 5.0, 0.3)]
    shortest = data.draw(st.sampled_from([0.0, 1e-2, 0.1]))
    same_attempts(
        f,
        torch.tensor([[data.draw(entries), data.draw(entries)]], dtype=torch.float64),
        torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64) * data.draw(st.sampled_from([1, -1])),
        method=data.draw(st.sampled_from(EXPLICIT)),
        rtol=10 ** -data.draw(st.floats(2, 4)),
        atol=10 ** -data.draw(st.floats(2, 4)),
        min_step=shortest,
        max_step=data.draw(st.sampled_from([INF, max(shortest, 0.1)])),
        first_step=data.draw(st.sampled_from([None, 0.05, 2.0])),
        controller=data.draw(st.sampled_from(controllers)),
    )


@pytest.mark.parametrize("min_step", [0.0, 1e-3])
@pytest.mark.parametrize("batched", [False, True])
def test_where_f_is_not_defined_all_loops_say_so(batched: bool, min_step: float) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(column(t) < 0.5, -y, NAN)

    with pytest.raises(NonFiniteError, match=r"just after t = 0\.49"):
        solve(f, ONE, [0.0, 1.0], batched=batched, min_step=min_step)


@pytest.mark.parametrize("controller", [IntegralController(), PIDController(kD=0.1)])
def test_a_row_that_waits_makes_the_steps_it_makes_alone(controller: IntegralController) -> None:
    """The row beside it leaves the domain of f at first, and its attempts are repeated."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return (1.2 + torch.sin(5 * column(t))) * root(t, y)

    y0 = torch.tensor([[100.0], [0.02]], dtype=torch.float64)
    t = torch.tensor([[0.0, 0.5], [0.0, 0.175]], dtype=torch.float64)
    settings = SolverSettings(METHODS["dopri5"], Tolerance(1e-7, 1e-7, rms_norm), controller, first_step=0.175)
    found = []
    for rows in (1, 2):
        sweeps: list[Sweep] = []
        with torch.no_grad():
            stats = Statistics()
            per_sample(f, y0[:rows], t[:rows], settings, stats, lambda sweep, *_, seen=sweeps: seen.append(sweep))
        found.append([sweep.h[0] for sweep in sweeps if sweep.accepted[0]])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert stats.per_sample is not None
    assert int(stats.per_sample.rejected[1]) > 3
    assert len(found[0]) > 2


def test_a_row_that_is_done_does_not_keep_the_others() -> None:
    """While it waits, its state and time are seen again and again, here with a derivative that is no number."""
    seen = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal seen
        seen = seen + 1 if t[0] == 0.5 else 0
        done = torch.tensor([[seen > 1], [False]])  # once at the end of the last step
        return torch.where(done, NAN, -y)

    t = torch.tensor([[0.0, 0.5], [0.0, 3.0]], dtype=torch.float64)
    how: dict[str, Any] = {"method": "adaptive_heun", "rtol": 1e-4, "atol": 1e-4, "max_steps": 1000}
    y = solve(f, ONE.expand(2, 2).clone(), t, batched=True, **how).y
    torch.testing.assert_close(y[-1, :, 0], torch.exp(-t[:, 1]), rtol=1e-2, atol=1e-3)


# Compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_compiled(method: str, batched: bool) -> None:
    """Same steps, and the options are inputs of one graph."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return 5 * torch.exp(-((10 * (column(t) - 1)) ** 2)) - torch.sqrt(y)

    options: list[tuple[list[float], dict[str, Any]]] = [
        ([0.0, 1.5], {}),
        ([0.0, 1.5], {"first_step": 1.5}),
        ([0.0, -0.2, -0.5], {}),
        ([0.0, 1.5], {"min_step": 0.11}),
        ([0.7, 0.951], {"min_step": 0.25, "first_step": 0.25}),
        ([0.0, 1.5], {"max_step": 0.07}),
        ([0.0, 0.00201], {"first_step": 0.002}),
        ([0.0, 0.00201], {"first_step": 0.002, "max_step": 0.002}),
        ([0.0, 1.5], {"controller": IntegralController(0.8, 2.0, 0.5)}),
    ]
    run = partial(solve, f, method=method, batched=batched, rtol=1e-5, atol=1e-6)
    graphs = []
    with torch.no_grad():
        for t, how in options:
            plain, compiled = run(ONE, t, **how).stats, run(ONE, t, compile=True, **how).stats
            assert (compiled.accepted, compiled.rejected) == (plain.accepted, plain.rejected)
            assert compiled.step_sizes == pytest.approx(plain.step_sizes, rel=1e-3)
            graphs.append(compiled_so_far())
        assert graphs[0] == graphs[-1]
        with pytest.raises(NonFiniteError):
            run(0.01 * ONE, [0.0, 0.5], compile=True, min_step=1e-3)
