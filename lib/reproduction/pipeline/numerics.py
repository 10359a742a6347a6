"""Golden numbers: what the solvers give on a dozen small problems, so that a change of behaviour is seen as one.

`lib/neural_ode/numerics.json` is the library's behaviour as data. A refactoring leaves it alone; a change of
numbers changes it in the same commit:

    python -m reproduction.pipeline.numerics
"""

import cmath
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode import PIDController, solve
from neural_ode.gradients import Backsolve, Interpolating
from neural_ode.methods import METHODS, ExplicitRungeKutta, ImplicitRungeKutta, Method, ReversibleRungeKutta
from neural_ode.methods.tableaus.explicit import RK4
from reproduction.files import read_json, write_atomically

__all__ = ["CASES", "FILE", "Case", "differences", "main", "measured"]

FILE = Path(__file__).parents[2] / "neural_ode" / "numerics.json"
DIGITS, DIGITS_COMPILED = 10, 6
"""Decimal digits that a result has to agree in, of the largest number beside it."""


class _Problem(nn.Module):
    """`dy/dt = f(t, y)` with parameters: an initial state, output times, and a formula."""

    def __init__(
        self,
        formula: Callable[..., Any],
        y0: Any,
        t: Sequence[float] | Sequence[Sequence[float]],
        params: Mapping[str, Tensor],
    ):
        super().__init__()
        self.formula, self.y0, self.t = formula, y0, t
        for name, value in params.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, t: Tensor, y: Any) -> Any:
        return self.formula(t, y, **dict(self.named_parameters()))


def _vector(*values: complex) -> Tensor:
    return torch.tensor(values, dtype=torch.complex128 if isinstance(values[0], complex) else torch.float64)


def _waves(*shape: int, phase: float = 0.0) -> Tensor:
    """Weights that are no random numbers, which may change with the version of PyTorch."""
    return torch.sin(torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64) * 1.7 + phase).reshape(shape)


def lotka_volterra() -> _Problem:
    """With seasons: the prey's growth varies with time."""

    def f(t: Tensor, y: Tensor, rates: Tensor) -> Tensor:
        prey, predators = y.unbind(-1)
        a, b, c, d = rates.unbind()
        return torch.stack(
            [a * (1 + 0.2 * torch.sin(2 * t)) * prey - b * prey * predators, d * prey * predators - c * predators],
            dim=-1,
        )

    return _Problem(f, _vector(1, 1.5), [0, 0.7, 2.5], {"rates": _vector(1.5, 1, 3, 1)})


def relaxation() -> _Problem:
    """Stiff: `y' = -k (y - cos t)`, and a slow oscillation beside it."""

    def f(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        fast, slow = y.unbind(-1)
        return torch.stack([-k * (fast - torch.cos(t) * slow), -slow * torch.sin(t)], dim=-1)

    return _Problem(f, _vector(0.3, 1), [0, 0.4, 2], {"k": torch.tensor(60.0, dtype=torch.float64)})


def network() -> _Problem:
    """Three rows of two numbers through a perceptron, which works harder at times."""

    def f(t: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (1 + 0.3 * torch.sin(t)[..., None]) * (torch.tanh(y @ a + b) @ c)

    weights = {"a": _waves(2, 5), "b": _waves(5, phase=0.4), "c": _waves(5, 2, phase=1.1)}
    return _Problem(f, _waves(3, 2, phase=2.0), [0, 0.5, 1.5], weights)


def rows_with_times() -> _Problem:
    """The same, each row with times of its own."""
    problem = network()
    problem.t = [[0, 0.5, 1.5], [0.2, 1.0, 1.2], [-0.5, 0.1, 2.0]]
    return problem


def rotation() -> _Problem:
    """Complex: `y' = λ y + e^{it}`."""

    def f(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return rate * y + torch.exp(1j * t)

    return _Problem(f, _vector(1 + 0.5j, 0.2 - 1j), [0, 1, 3], {"rate": _vector(cmath.rect(0.5, 2.0), -0.3 + 2j)})


def planar_flow() -> _Problem:
    """A tuple, backwards in time: samples and their log-densities along the planar flow of the paper."""

    def f(t: Tensor, y: tuple[Tensor, Tensor], w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(y[0] @ w + b * t)
        return h[:, None] * u, -(1 - h**2) * (w @ u)

    start = (_waves(4, 2, phase=0.3), torch.zeros(4, dtype=torch.float64))
    return _Problem(f, start, [1, 0.3, 0], {"w": _vector(1.2, -2), "u": _vector(0.8, 1.1), "b": _vector(0.5)})


def kink() -> _Problem:
    """`f` jumps at t = 0.6."""

    def f(t: Tensor, y: Tensor, force: Tensor) -> Tensor:
        return torch.where(t < 0.6, -y, force - 3 * y)

    return _Problem(f, _vector(1, -2), [0, 0.5, 1.4], {"force": _vector(1, 2)})


def pendulum() -> _Problem:
    def f(t: Tensor, y: Tensor, gravity: Tensor) -> Tensor:
        angle, speed = y.unbind(-1)
        return torch.stack([speed, -gravity * torch.sin(angle)], dim=-1)

    return _Problem(f, _vector(1.2, 0), [0, 0.3, 4], {"gravity": torch.tensor(2.0, dtype=torch.float64)})


@dataclass(frozen=True)
class Case:
    """One solve and its gradients.

    Attributes:
        problem: makes the problem.
        method: name of a method, or a method.
        options: of `solve`.
        digits: that the numbers have to agree in.
    """

    problem: Callable[[], _Problem]
    method: str | Method = "dopri5"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digits(self) -> int:
        """Decimal digits that have to agree."""
        return DIGITS_COMPILED if self.options.get("compile") else DIGITS


_TOLERANCE = {"rtol": 1e-6, "atol": 1e-8}


def _method_case(name: str) -> Case:
    method = METHODS[name]
    assert isinstance(method, Method)
    if not method.adaptive:
        return Case(network, name, {"step_size": 0.03125})
    return Case(relaxation if isinstance(method, ImplicitRungeKutta) else lotka_volterra, name, _TOLERANCE)


def _cases() -> dict[str, Case]:
    cases = {f"method {name}": _method_case(name) for name, method in METHODS.items() if isinstance(method, Method)}

    def add(name: str, problem: Callable[[], _Problem], method: str | Method = "dopri5", **options: Any) -> None:
        cases[name] = Case(problem, method, _TOLERANCE | options)

    backsolve = {
        "backsolve": "backsolve",
        "backsolve seminorm": Backsolve(norm="seminorm"),
        "backsolve quadrature": Backsolve(quadrature=True),
        "backsolve with tsit5 at 1e-4": Backsolve(method="tsit5", rtol=1e-4, atol=1e-6),
    }
    through = {"recursive_checkpoint": "recursive_checkpoint", "interpolating": "interpolating"}
    for name, gradient in (
        backsolve | through | {"interpolating seminorm": Interpolating(norm="seminorm")}
    ).items():
        add(f"gradient {name}", network, gradient=gradient)
    for name in ("backsolve", "recursive_checkpoint", "interpolating"):
        add(f"gradient {name} kvaerno5", relaxation, "kvaerno5", gradient=name)
        add(f"gradient {name} adams", lotka_volterra, "adams", gradient=name)
        if name != "interpolating":
            add(f"gradient {name} rk4", network, "rk4", gradient=name, step_size=0.1)
            add(f"rows {name}", rows_with_times, gradient=name, batched=True)
    add("gradient reversible", network, gradient="reversible", step_size=0.1)
    add("reversible steps", network, ReversibleRungeKutta(ExplicitRungeKutta(RK4), 0.99), step_size=0.1)
    add("rows", rows_with_times, batched=True)
    add("rows tsit5", rows_with_times, "tsit5", batched=True)
    add("complex", rotation)
    add("complex backsolve", rotation, gradient="backsolve")
    add("tuple", planar_flow)
    add("tuple backsolve", planar_flow, gradient="backsolve")
    add("jump", kink, jump_t=[0.6])
    add("unannounced jump", kink)
    add("stops", lotka_volterra, step_t=[0.2, 1.9])
    add("limits", lotka_volterra, first_step=0.3, min_step=0.02, max_step=0.25)
    add("rejections", lotka_volterra, first_step=2.0)
    add("pid", lotka_volterra, controller=PIDController())
    add("pid of three", lotka_volterra, controller=PIDController(kI=0.3, kP=0.3, kD=0.1))
    add("tolerances of entries", lotka_volterra, rtol=[1e-3, 1e-8])
    add("largest error", lotka_volterra, norm=lambda x: x.abs().amax())
    add("grid", lotka_volterra, "rk4", grid=lambda t: torch.linspace(0, 2.5, 40, dtype=t.dtype))
    add("grid cubic", lotka_volterra, "heun3", step_size=0.11, interpolation="cubic")
    add("grid perturbed", kink, "midpoint", step_size=0.1, perturb=True)
    add("event", pendulum, event=lambda t, y: y[0])
    add("event backsolve", pendulum, gradient="backsolve", event=lambda t, y: y[0])
    add("event adams", pendulum, "adams", event=lambda t, y: y[0])
    add("event rk4", pendulum, "rk4", step_size=0.1, event=lambda t, y: y[0])
    for name in ("direct", "recursive_checkpoint", "backsolve"):
        add(f"compiled {name}", network, gradient=name, compile=True)
    add("compiled rows", rows_with_times, gradient="recursive_checkpoint", batched=True, compile=True)
    return cases


CASES = _cases()


def measured(case: Case, **changes: Any) -> dict[str, Any]:
    """Solve, differentiate, and say what came out.

    Args:
        changes: options of `solve` to use instead of the case's, or `method`.

    Returns:
        Evaluations, accepted and rejected steps of the forward solve, of all solves with the backward ones, the
        states, and the gradients of a weighted sum of them with respect to the initial state, the times and the
        parameters.
    """
    problem = case.problem()
    t = torch.tensor(problem.t, dtype=torch.float64, requires_grad=True)
    one = isinstance(problem.y0, Tensor)
    y0 = tuple(part.clone().requires_grad_() for part in ((problem.y0,) if one else problem.y0))
    options = {"method": case.method, **case.options, **changes}
    solution = solve(problem, y0[0] if one else y0, t, **options)
    forward = _counts(solution.stats)
    parts = (solution.y,) if isinstance(solution.y, Tensor) else solution.y
    loss = sum((_waves(*part.shape, phase=0.2) * _size(part)).sum() for part in parts) + solution.t[-1].sum()
    inputs = {"y0": y0, "t": (t,), "params": tuple(problem.parameters())}
    flat = [x for group in inputs.values() for x in group]
    found = iter(torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True))
    gradients = {name: _numbers([next(found) for _ in group]) for name, group in inputs.items()}
    return {
        "forward": forward,
        "with_backward": _counts(solution.stats),
        "y": _numbers(parts),
        "gradients": gradients,
    }


def _size(part: Tensor) -> Tensor:
    return part.real + part.imag**2 if part.is_complex() else part + part**2


def _counts(stats: Any) -> list[int]:
    return [int(torch.as_tensor(x).sum()) for x in (stats.nfe, stats.accepted, stats.rejected)]


def _numbers(parts: Any) -> list[float]:
    flat = [torch.view_as_real(x) if x.is_complex() else x for x in (part.detach() for part in parts)]
    return [float(f"{x:.12g}") for part in flat for x in part.reshape(-1).tolist()]


def differences(name: str, stored: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Where a case's numbers differ by more than its digits allow, in words."""
    off = [
        f"{name}: {kind} {found[kind]} instead of {stored[kind]} (evaluations, accepted, rejected)"
        for kind in ("forward", "with_backward")
        if stored[kind] != found[kind]
    ]
    pairs = {"y": (stored["y"], found["y"])}
    pairs |= {f"gradient of {kind}": (stored["gradients"][kind], x) for kind, x in found["gradients"].items()}
    for what, (before, now) in pairs.items():
        limit = max(map(abs, before), default=0.0) * 10.0 ** -CASES[name].digits
        worst = max((abs(a - b) for a, b in zip(before, now, strict=True)), default=0.0)
        if not worst <= limit:
            off.append(f"{name}: {what} is off by {worst:.1e}, more than {limit:.1e}")
    return off


def main() -> int:
    """Bring the file up to date: cases that agree keep their digits."""
    stored = read_json(FILE, "write it anew: python -m reproduction.pipeline.numerics") if FILE.exists() else {}
    found = {name: measured(case) for name, case in CASES.items()}
    kept = {
        name: stored[name] if name in stored and not differences(name, stored[name], now) else now
        for name, now in found.items()
    }
    for name in sorted({*stored, *kept}):
        if stored.get(name) != kept.get(name):
            print(f"changed: {name}")
    write_atomically(FILE, text(kept))
    return 0


def text(numbers: Mapping[str, Any]) -> str:
    """The file: a case a line, so that a difference shows which changed."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in numbers.items()) + "\n}\n"


if __name__ == "__main__":
    raise SystemExit(main())
