"""Solvers that solve a whole interval and show nothing of their steps.

What happens inside cannot be differentiated: such a solver only makes the solution, and a gradient has to come from
solves of its own (the adjoint equation).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, NonFiniteError
from neural_ode.methods.base import Capabilities
from neural_ode.problem.dynamics import check_slope
from neural_ode.problem.state import Dynamics

__all__ = ["BlackBox", "FunctionSolver", "Solver"]

Solver = Callable[[Dynamics, Tensor, Tensor, float | Tensor, float | Tensor], Tensor]
"""`solver(f, y0, t, rtol, atol)` returns the states at the times `t`, shape (n, *y0.shape)."""


class BlackBox(Capabilities, ABC):
    """A solver that is asked for the states at some times and returns them."""

    adaptive = True
    shows_steps = False

    def configured(self, **options: Any) -> "BlackBox":
        """The solver with other values of its `options`."""
        raise InvalidArgumentError(f"{self.name} has no options, got {', '.join(options)}")

    @abstractmethod
    def integrate(
        self, f: Dynamics, y0: Tensor, t: Tensor | Sequence[float], rtol: float | Tensor, atol: float | Tensor
    ) -> tuple[Tensor, int]:
        """Solve `dy/dt = f(t, y)`, `y(t[0]) = y0`, without gradients.

        Args:
            f: the dynamics; gets tensors of the dtype and device of `y0`.
            y0: the initial state, any shape.
            t: strictly monotonic times, shape (n,). With one time there is nothing to solve.
            rtol, atol: relative and absolute tolerance; a tensor broadcasts to the shape of `y0`.

        Returns:
            The states at `t`, shape (n, *y0.shape), and the number of evaluations of `f`.

        Raises:
            SolverError: the solve cannot be finished. Its attribute `partial` has the output times that were passed
                and, at the end, the time that was reached, a list; and the states there, shape (m, *y0.shape).
        """


class FunctionSolver(BlackBox):
    """A solver that is a plain function, see `Solver`; pass it as `method=`, or give it a name in `METHODS`.

    Example:
        >>> import torch
        >>> from neural_ode import solve
        >>> def euler(f, y0, t, rtol, atol):
        ...     states = [y0]
        ...     for start, end in zip(t[:-1], t[1:]):
        ...         states.append(states[-1] + (end - start) * f(start, states[-1]))
        ...     return torch.stack(states)
        >>> solve(lambda t, y: -y, torch.ones(1), [0.0, 0.5, 1.0], method=euler).y[-1].item()
        0.25
    """

    def __init__(self, solver: Solver):
        self.solver = solver
        self.name = getattr(solver, "__name__", type(solver).__name__)

    def integrate(
        self, f: Dynamics, y0: Tensor, t: Tensor | Sequence[float], rtol: float | Tensor, atol: float | Tensor
    ) -> tuple[Tensor, int]:
        """Call the function, with times of the dtype of the state; see `BlackBox.integrate`.

        Raises:
            InvalidArgumentError: it returned something else than the states at `t`.
            NonFiniteError: one of them is NaN or infinite.
        """
        calls = 0

        def counted(time: Tensor | float, y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            slope = f(torch.as_tensor(time, dtype=y0.abs().dtype, device=y0.device), y)
            if calls == 1:
                check_slope(slope, y)
            return slope

        # The times as the states are, so that steps computed from them do not change the dtype.
        times = torch.as_tensor(t, dtype=y0.abs().dtype, device=y0.device)
        y = self.solver(counted, y0, times, rtol, atol)
        shape = (len(times), *y0.shape)
        if not isinstance(y, Tensor) or y.shape != shape or y.dtype != y0.dtype:
            got = f"{tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise InvalidArgumentError(
                f"the solver {self.name} must return the states at t, a tensor of shape {shape} and {y0.dtype}; "
                f"it returned {got}"
            )
        if not torch.isfinite(y).all():
            raise NonFiniteError(f"the solver {self.name} returned NaN or infinity: take shorter steps in it")
        return y, calls
