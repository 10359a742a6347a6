"""What can be chosen about the backward solve of the adjoint method."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, finite_number
from neural_ode.methods import BlackBox, Method, Solver, get_method
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.problem.norms import Norm, rms_norm
from neural_ode.problem.state import State
from neural_ode.stepping.settings import SolverSettings, stepping

__all__ = ["AdjointNorm", "AdjointOptions", "PartNorm"]

AdjointNorm = Callable[[State, State, tuple[Tensor, ...]], Tensor]
"""Norm of `(z, a, (∂L/∂θ, …))`: state and adjoint in the structure of `y0`, a gradient for each parameter."""

PartNorm = Callable[[tuple[Tensor, ...]], Tensor]
"""The same as a function of `(0, z, a, ∂L/∂θ, …)`, state and adjoint packed."""

_STEPPING = tuple(inspect.signature(stepping).parameters)


@dataclass(frozen=True)
class AdjointOptions:
    """Options of the backward solve. What is left out is taken from the forward solve.

    Attributes:
        method: method of the backward solve.
        rtol, atol: its tolerances.
        step_size: a constant step for the backward solve; that of the forward solve if left out, unless the
            backward solve has a method of its own.
        norm: norm of the error control, a function of what is solved: state (not with `interpolating`), adjoint,
            and the tuple of the parameters' gradients (empty with a quadrature). The default measures the first
            two as the forward solve does and every gradient by its root mean square, and takes the largest.
            `"seminorm"` leaves out the gradients (Kidger et al. 2021): they do not feed back into the solve.
        options: further fields of the backward solve's `SolverSettings`, such as `{"max_step": 0.1}`.
        quadrature: take the parameters' gradients out of the system altogether, and sum them over the stages of
            each accepted step. For explicit Runge-Kutta methods. Needs no memory of their size in each stage and,
            as with the seminorm, no error control. Second derivatives are found with them in the system.
    """

    name: ClassVar[str]

    method: str | Method | BlackBox | Solver | None = None
    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    step_size: float | None = None
    norm: Callable[..., Tensor] | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    quadrature: bool = False

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "step_size"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Tensor) and value.numel() != 1):
                number = finite_number(f"{name} of the backward solve", value)
                if number < 0 or (name == "step_size" and number == 0):
                    raise InvalidArgumentError(f"{name} of the backward solve must be positive, got {number!r}")
                object.__setattr__(self, name, number)
        if not self.options:  # also `None`
            object.__setattr__(self, "options", {})
        if not isinstance(self.options, Mapping):
            raise InvalidArgumentError(
                f"options of the backward solve must be a dict such as {{'max_step': 0.1}}, got {self.options!r}"
            )
        if not (self.norm is None or self.norm == "seminorm" or callable(self.norm)):
            raise InvalidArgumentError(
                f"norm of the backward solve must be a function or 'seminorm', got {self.norm!r}"
            )
        if self.method is not None:
            object.__setattr__(self, "method", get_method(self.method))

    def check(self, problem: InitialValueProblem, settings: SolverSettings) -> None:
        """Whether a problem can be differentiated so, solved with these settings.

        Raises:
            InvalidArgumentError: it cannot; the message names what to use instead.
        """
        method = settings.method if self.method is None else get_method(self.method)
        if self.quadrature and not method.supports_quadrature:
            raise InvalidArgumentError(
                f"quadrature=True is for explicit Runge-Kutta methods, such as dopri5; the backward solve has "
                f"{method.name}: leave it out or pass method='dopri5'"
            )

    def steps(self, forward: SolverSettings) -> SolverSettings:
        """How the backward solve is made, with the tolerances and the norm of the state.

        Raises:
            InvalidArgumentError: that cannot be; the message names the option.
        """
        own_method = self.method is not None
        method = forward.method if self.method is None else get_method(self.method)
        tolerance = forward.tolerance
        if self.rtol is not None or self.atol is not None:
            rtol = tolerance.rtol if self.rtol is None else self.rtol
            atol = tolerance.atol if self.atol is None else self.atol
            tolerance = Tolerance(rtol, atol, tolerance.norm)
        settings = replace(
            forward,
            method=method,
            tolerance=tolerance,
            step_size=forward.step_size if self.step_size is None and not own_method else self.step_size,
            grid=None if own_method or self.step_size is not None else forward.grid,
            first_step=None,
            callbacks=self.options.get("callbacks", Callbacks()),
        )
        changed = {name: value for name, value in self.options.items() if name != "callbacks"}
        if not changed:
            return settings
        own = {name: getattr(settings, name) for name in _STEPPING}
        return replace(settings, **stepping(**own | changed))

    def part_norm(self, norm: Norm, restore: Callable[[Tensor], State], states: int) -> PartNorm:
        """The norm of the backward solve.

        Args:
            norm: that of the forward solve.
            restore: turns packed states into the user's structure.
            states: how many states the system has, `z` and `a` or `a` alone.
        """
        own = self.norm
        if callable(own):
            return lambda parts: own(*map(restore, parts[1 : states + 1]), parts[states + 1 :])

        def default(parts: tuple[Tensor, ...]) -> Tensor:
            time, gradients = parts[0], parts[states + 1 :]
            sizes = [time.abs()]
            for x in parts[1 : states + 1]:
                sizes.append(torch.as_tensor(norm(x)).to(time))  # the user's norm may return a number
            if own is None:
                sizes.extend(map(rms_norm, gradients))
            return torch.stack(sizes).amax()

        return default
