"""Backpropagation through the steps of a reversible solver, whose states are computed backwards.

McCallum & Foster (2024), arXiv 2410.11648. Exact for the discrete solve, as `direct` is, and keeps the state at the
end only: memory O(1). The solve is another than that of `direct`, though: the method's reversible form, with steps
that end at the output times.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, NeuralODEWarning, finite_number
from neural_ode.gradients.checkpoints import Kept, Snapshot
from neural_ode.gradients.step_replay import solve_stepwise
from neural_ode.methods import ExplicitRungeKutta, ReversibleRungeKutta
from neural_ode.methods.reversible import Companion
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.solution import Made, Statistics
from neural_ode.stepping.settings import SolverSettings, Trajectory
from neural_ode.stepping.step_records import Replay

__all__ = ["Reversible"]


_LOOSE, _LOOSE_ON_A_GRID = 1000.0, 1.0
"""How far apart the two states may be: in units of the tolerance of a step, or of the state."""


@dataclass(frozen=True)
class Reversible:
    """`gradient="reversible"`: solve with a reversible form of the method, and undo its steps one by one.

    For explicit Runge-Kutta methods, with error control or on a grid. A grid has to lead through the output times;
    a constant step is shortened a little where it would not.

    Attributes:
        coupling: λ of the method, in (0, 1]. A step has the determinant λ, which cuts both ways. Undoing `n` steps
            multiplies rounding errors by up to `λ^-n`: with the default by 2.7 for a thousand steps and 2·10⁴ for
            ten thousand, with 0.99 by 2·10⁴ for a thousand. And where solutions approach each other like
            `exp(-k t)`, the two states of the method drift apart like `λ^n exp(k t)`, whatever the tolerance:
            a smaller λ, with more steps, holds them together. A warning says if they have drifted too far.
    """

    name: ClassVar[str] = "reversible"
    needs_params: ClassVar[bool] = True

    coupling: float = 0.999

    def __post_init__(self) -> None:
        coupling = finite_number("coupling", self.coupling)
        if not 0 < coupling <= 1:
            raise InvalidArgumentError(f"coupling must lie in (0, 1], got {self.coupling!r}")
        object.__setattr__(self, "coupling", coupling)

    def check(self, problem: InitialValueProblem, settings: SolverSettings) -> None:
        """The method is an explicit Runge-Kutta method, and no event ends the solve.

        Raises:
            InvalidArgumentError: that is not so; the message names what to use instead.
        """
        if problem.event is not None:
            raise InvalidArgumentError(
                "event cannot be used with gradient='reversible', which has no states inside of its steps: use "
                "gradient='recursive_checkpoint'"
            )
        if not settings.method.supports_reversal:
            raise InvalidArgumentError(
                "gradient='reversible' is for explicit Runge-Kutta methods, such as dopri5; for "
                f"{settings.method.name} use gradient='recursive_checkpoint'"
            )

    def __call__(self, problem: InitialValueProblem, settings: SolverSettings, stats: Statistics) -> Trajectory:
        if problem.compile:
            text = "compile=True has no effect with gradient='reversible', which runs as it is"
            stats.not_compiled = "gradient='reversible' has steps of its own"
            warnings.warn(text, NeuralODEWarning, stacklevel=6)
        settings, method = self.settings(settings, problem.t)
        trail = _Reversal(method)
        trajectory = solve_stepwise(self.name, problem, settings, stats, trail)
        self._check(trail, settings)
        return trajectory

    def _check(self, trail: "_Reversal", settings: SolverSettings) -> None:
        """Both states of the method approximate the solution: one tells how far off the other may be."""
        if trail.last is None or trail.last.carry is None:
            return
        assert isinstance(trail.last.carry, Companion)
        y, z = trail.last.y, trail.last.carry.z
        trail.last = None
        if settings.controls_error:
            gap = settings.tolerance.ratio(y - z, y, y) / _LOOSE
        else:
            gap = float((y - z).abs().sum() / y.abs().sum().clamp_min(1e-30)) / _LOOSE_ON_A_GRID
        if not gap <= 1:
            text = (
                f"the two states of the reversible solve have drifted apart, {gap:.1e} times what is sensible: "
                f"the problem decays too fast. Use a smaller coupling than {self.coupling}, shorter steps, or "
                "gradient='recursive_checkpoint'"
            )
            warnings.warn(text, NeuralODEWarning, stacklevel=7)

    def settings(self, settings: SolverSettings, t: Tensor) -> tuple[SolverSettings, ReversibleRungeKutta]:
        """With the reversible form of the method, and steps that end at the times `t`; and that method."""
        assert isinstance(settings.method, ExplicitRungeKutta)
        method = ReversibleRungeKutta(settings.method, self.coupling)
        if settings.controls_error:
            between = tuple(time for time in t[1:-1].tolist() if time not in settings.jump_t)
            return replace(settings, method=method, step_t=settings.step_t + between), method
        if settings.grid is not None:
            return replace(settings, method=method, grid=_checked(settings.grid)), method
        if settings.step_size is not None:
            size = settings.step_size
            return replace(settings, method=method, grid=lambda t: _through(t, size), step_size=None), method
        return replace(settings, method=method), method


class _Reversal:
    """Where the steps of a reversible method started: found from where the last one did.

    Attributes:
        kept: the last step, and each after which the method started anew, at a jump of the dynamics.
        last: what the last step started from, until it is looked at.
    """

    def __init__(self, method: ReversibleRungeKutta):
        self.method = method
        self.kept: list[Kept] = []
        self.last: Snapshot | None = None

    def offer(self, number: int, snapshot: Snapshot) -> None:
        if snapshot.carry is not None:
            self.kept.pop()
        self.kept.append((number, snapshot))
        self.last = snapshot

    def backwards(self, made: Sequence[Made], kept: Sequence[Kept], replay: Replay[Made]) -> Iterator[Kept]:
        known = dict(kept)
        snapshot = known[len(made) - 1]
        for number in reversed(range(len(made))):
            if number in known:
                snapshot = known[number]
            else:
                with torch.no_grad():
                    f, t = replay.beginning(made[number])
                    assert isinstance(snapshot.carry, Companion)
                    y, carry, nfe = self.method.undo(f, t, snapshot.y, made[number].h, snapshot.carry)
                replay.stats.nfe += nfe
                snapshot = Snapshot(y, None if made[number].restarted else carry)
            yield number, snapshot


def _through(t: Tensor, step_size: float) -> Tensor:
    """A grid through the times `t`, with equal steps of at most `step_size` from each to the next."""
    points = [t[:1]]
    for start, end in pairwise(t):
        steps = max(1, math.ceil(abs((end - start).item()) / step_size - 1e-9))
        inner = torch.arange(1, steps, dtype=t.dtype, device=t.device) / steps
        points += [start + (end - start) * inner, end[None]]
    return torch.cat(points)


def _checked(grid: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The grid, refused where it does not lead through the output times."""

    def checked(t: Tensor) -> Tensor:
        points = grid(t)
        missing = set(t.tolist()) - set(points.to(t).tolist())
        if missing:
            raise InvalidArgumentError(
                f"the grid must contain the output times for gradient='reversible', it lacks {sorted(missing)}"
            )
        return points

    return checked
