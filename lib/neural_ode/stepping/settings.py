"""Everything that decides how an initial value problem is solved, but not the problem."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from neural_ode.control.controllers import IntegralController
from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, finite_number
from neural_ode.methods import BlackBox, Method, Solver, get_method
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.problem.layout import StateLayout

__all__ = ["SolverSettings", "Trajectory", "longest_step", "stepping"]


@dataclass(frozen=True)
class SolverSettings:
    """How to solve.

    Attributes:
        method: makes the steps, or solves the whole interval.
        tolerance: what error a step may have.
        controller: chooses the next step from the error of the last.
        first_step: length of the first step; `None` lets the solver choose.
        min_step: a step of this length or less is accepted whatever its error.
        max_step: the longest step.
        max_steps: how many steps, rejected ones included, from one output time to the next.
        step_t: times that steps must end at.
        jump_t: the same, where the dynamics are discontinuous.
        step_size: a constant step instead of error control. `None`: error control where the method has an error
            estimate, one step between output times where it has none.
        grid: maps the output times to the grid of a solve without error control.
        interpolation: how a fixed-grid method without a continuous extension finds outputs between grid points.
        perturb: whether steps on a fixed grid see the dynamics only strictly inside the step.
        callbacks: called as the steps are made.
    """

    method: Method | BlackBox
    tolerance: Tolerance
    controller: IntegralController = field(default_factory=IntegralController)
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    max_steps: int = 2**31 - 1
    step_t: tuple[float, ...] = ()
    jump_t: tuple[float, ...] = ()
    step_size: float | None = None
    grid: Callable[[Tensor], Tensor] | None = None
    interpolation: Literal["linear", "cubic"] = "linear"
    perturb: bool = False
    callbacks: Callbacks = field(default_factory=Callbacks)

    @classmethod
    def checked(
        cls,
        layout: StateLayout,
        *,
        method: str | Method | BlackBox | Solver,
        rtol: Any,
        atol: Any,
        norm: Callable[[Any], Tensor] | None = None,
        callbacks: Callbacks | None = None,
        **steps: Any,
    ) -> Self:
        """What a user says about how to solve, brought to its types.

        Args:
            layout: of the state, which tolerances, norm and callbacks are in the structure of.
            method, rtol, atol, norm, callbacks: see `solve`.
            **steps: see `stepping`.

        Raises:
            InvalidArgumentError: something cannot be used; the message names it.
            UnknownNameError: no such method.
        """
        chosen = get_method(method)
        tolerance = Tolerance(
            layout.tolerance("rtol", rtol), layout.tolerance("atol", atol), layout.packed_norm(norm)
        )
        numbers = [x for x in (tolerance.rtol, tolerance.atol) if not isinstance(x, Tensor)]
        if numbers == [0, 0]:
            raise InvalidArgumentError("rtol and atol must not both be zero")
        settings = cls(chosen, tolerance, callbacks=layout.callbacks(callbacks), **stepping(**steps))
        if chosen.own_steps and not settings.controls_error:
            raise InvalidArgumentError(f"{chosen.name} chooses its steps; on a grid, use implicit_adams")
        if chosen.own_steps and type(settings.controller) is not IntegralController:
            raise InvalidArgumentError(f"{chosen.name} has step control of its own, got {settings.controller}")
        return settings

    def check(self, problem: InitialValueProblem) -> None:
        """Whether a problem can be solved so.

        Raises:
            InvalidArgumentError: it cannot; the message names what to use instead.
        """
        method = self.method
        if problem.batched:
            self._check_rows(problem)
        elif problem.dense and not method.has_dense_output:
            raise InvalidArgumentError(f"{method.name} has no dense output; dopri5 has")
        if problem.event is None:
            return
        if not method.supports_events:
            raise InvalidArgumentError(f"{method.name} does not look for events; dopri5 does")
        if math.isinf(problem.t[-1].item()) and not self.controls_error and self.step_size is None:
            raise InvalidArgumentError(
                f"{method.name} needs a step_size to look for an event: without one it takes a single step"
            )

    def _check_rows(self, problem: InitialValueProblem) -> None:
        method = self.method
        if not (method.supports_rows and self.controls_error):
            raise InvalidArgumentError(
                f"batched=True is for explicit methods with error control, such as dopri5; got {method.name}"
                + (" on a fixed grid" if method.adaptive and method.supports_rows else "")
            )
        for name, value in (
            ("event", problem.event),
            ("dense", problem.dense),
            ("step_t", self.step_t),
            ("jump_t", self.jump_t),
            ("callbacks", self.callbacks != Callbacks()),
        ):
            if value:
                raise InvalidArgumentError(
                    f"{name} cannot be used with batched=True: every sample has times of its own"
                )

    def longest_step(self, y: Tensor) -> float:
        """The longest step that may be made with this state: its length has to be a number of its dtype."""
        return min(self.max_step, longest_step(self.method, y))

    @property
    def controls_error(self) -> bool:
        """Whether the steps are chosen by their error, not by a grid."""
        method = self.method
        return method.shows_steps and method.adaptive and self.step_size is None and self.grid is None


def longest_step(method: Method | BlackBox, y: Tensor) -> float:
    """The longest step whose multiples, which the method computes with, are numbers of the dtype of the state."""
    return torch.finfo(y.dtype).max / (2 * method.largest_weight)


class Trajectory(NamedTuple):
    """The states that a solve has found.

    Attributes:
        t: the output times, shape (n,); after an event those before it and its own.
        y: the states there, shape (n, *state).
        next_step: the step that the controller would take next, 0 if there is none.
        event: which component of the event function ended the solve, `None` if none did.
    """

    t: Tensor
    y: Tensor
    next_step: float = 0.0
    event: int | None = None


def stepping(
    *,
    controller: IntegralController | None = None,
    first_step: float | None = None,
    min_step: float = 0.0,
    max_step: float = math.inf,
    max_steps: int = 2**31 - 1,
    step_t: Tensor | Iterable[float] = (),
    jump_t: Tensor | Iterable[float] = (),
    step_size: float | None = None,
    grid: Callable[[Tensor], Tensor] | None = None,
    interpolation: Literal["linear", "cubic"] = "linear",
    perturb: bool = False,
) -> dict[str, Any]:
    """All fields of a `SolverSettings` that say how steps are chosen, checked and brought to their types.

    Raises:
        InvalidArgumentError: one cannot be used; the message names it.
    """
    if controller is not None and not isinstance(controller, IntegralController):
        raise InvalidArgumentError(f"controller must be one such as IntegralController(), got {controller!r}")
    shortest, longest = _limits(min_step, max_step)
    most = finite_number("max_steps", max_steps)
    if most < 1 or most != int(most):
        raise InvalidArgumentError(f"max_steps must be a whole number of at least 1, got {max_steps!r}")
    if interpolation not in ("linear", "cubic"):
        raise InvalidArgumentError(f"interpolation must be 'linear' or 'cubic', got {interpolation!r}")
    if step_size is not None and grid is not None:
        raise InvalidArgumentError("step_size and a grid are two ways to say the same: pass one of them")
    if grid is not None and not callable(grid):
        raise InvalidArgumentError(f"grid must be a function of the output times, got {type(grid).__name__}")
    stops, jumps = _stops("step_t", step_t), _stops("jump_t", jump_t)
    if set(stops) & set(jumps):
        raise InvalidArgumentError(f"step_t and jump_t must differ, both have {sorted(set(stops) & set(jumps))}")
    return {
        "controller": controller or IntegralController(),
        "first_step": _length("first_step", first_step),
        "min_step": shortest,
        "max_step": longest,
        "max_steps": int(most),
        "step_t": stops,
        "jump_t": jumps,
        "step_size": _length("step_size", step_size),
        "grid": grid,
        "interpolation": interpolation,
        "perturb": bool(perturb),
    }


def _limits(min_step: Any, max_step: Any) -> tuple[float, float]:
    shortest = finite_number("min_step", min_step)
    longest = math.inf if max_step == math.inf else finite_number("max_step", max_step)
    if shortest < 0:
        raise InvalidArgumentError(f"min_step must be zero or more, got {min_step!r}")
    if not longest > 0 or longest < shortest:
        raise InvalidArgumentError(
            f"max_step must be positive and not shorter than min_step, got {max_step!r} and {min_step!r}"
        )
    return shortest, longest


def _length(name: str, value: Any) -> float | None:
    if value is None:
        return None
    number = finite_number(name, value)
    if number <= 0:
        raise InvalidArgumentError(f"{name} must be a positive number, got {value!r}")
    return number


def _stops(name: str, times: Any) -> tuple[float, ...]:
    if not isinstance(times, Iterable) or isinstance(times, str):
        raise InvalidArgumentError(f"{name} must be a tensor or a sequence of times, got {times!r}")
    values = times.detach().reshape(-1).tolist() if isinstance(times, Tensor) else list(times)
    return tuple(finite_number(name, time) for time in values)
