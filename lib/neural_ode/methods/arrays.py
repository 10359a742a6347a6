"""What solvers that work on arrays of NumPy need: states, tolerances and dynamics as vectors."""

import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_ode.errors import NonFiniteError, SolverError
from neural_ode.problem.dynamics import check_slope
from neural_ode.problem.state import Dynamics

__all__ = [
    "Array",
    "ArrayDynamics",
    "ArrayOutputs",
    "ArraySolver",
    "Failure",
    "absolute_tolerance",
    "to_numpy",
    "to_torch",
]

Array = NDArray[Any]

Failure = tuple[type[SolverError], str]
"""The kind of error, and the reason."""


class ArrayDynamics:
    """`f` with vectors of NumPy in, vectors of NumPy out.

    Attributes:
        calls: evaluations so far.
        finite: becomes `False` when `f` returns NaN or infinity.
        starts: becomes `False` when it does so at the start.
        raised: what was raised here, to tell it from what SciPy raises.
    """

    def __init__(self, f: Dynamics, y0: Tensor):
        self.f, self.y0 = f, y0
        self.calls = 0
        self.finite = True
        self.starts = True
        self.raised: BaseException | None = None

    def __call__(self, t: float, y: Array) -> Array:
        self.calls += 1
        try:
            slope = self._evaluate(t, y)
            self.finite &= bool(np.isfinite(slope).all())
            self.starts = self.finite or self.calls > 1
            if not self.starts:
                # A solver would choose its first step from it, and never come back.
                raise NonFiniteError(
                    f"f(t, y) is not finite at the start, t = {t}: check y0 and the parameters of f"
                )
        except BaseException as error:
            self.raised = error
            raise
        return slope

    def _evaluate(self, t: float, y: Array) -> Array:
        like = self.y0
        # Copies both ways: SciPy writes over its vectors, and dynamics may write over theirs.
        state = torch.tensor(y, dtype=like.dtype, device=like.device).reshape(like.shape)
        with torch.no_grad():
            slope = self.f(torch.tensor(t, dtype=like.abs().dtype, device=like.device), state)
        check_slope(slope, state)
        return to_numpy(slope)


def to_numpy(x: Tensor) -> Array:
    """A vector of float64 or complex128 that shares no memory with `x`."""
    dtype = torch.complex128 if x.is_complex() else torch.float64
    array: Array = x.detach().to("cpu", dtype, copy=True).reshape(-1).numpy()
    return array


def to_torch(states: list[Array], like: Tensor) -> Tensor:
    """States of SciPy as a tensor of shape (n, *like.shape)."""
    stacked = torch.from_numpy(np.array(states)).reshape(len(states), *like.shape)
    return stacked.to(like.device, like.dtype)


def absolute_tolerance(atol: float | Tensor, y0: Tensor) -> Array:
    """For each entry; never zero, so that an error of zero is within it, and that its inverse can be squared."""
    return np.maximum(to_numpy(torch.as_tensor(atol).expand(y0.shape)), 1e-140)


class ArraySolver(Protocol):
    """Makes steps from the first time to the last, not past it."""

    t: float
    y: Array

    def step(self) -> Failure | None:
        """Make one step, or say why that is impossible."""

    def at(self, t: float) -> Array:
        """The state at a time within the last step."""


class ArrayOutputs:
    """Gathers the states at the output times while the steps pass over them.

    Attributes:
        states: those found so far.
        now: the time that was reached.
        y: the state there.
    """

    def __init__(self, times: list[float], y0: Array):
        self._times = times
        self._direction = math.copysign(1.0, times[-1] - times[0])
        self.states = [y0]
        self.now = times[0]
        self.y = y0

    @property
    def complete(self) -> bool:
        """Whether all are found."""
        return len(self.states) == len(self._times)

    @property
    def due(self) -> float:
        """The next output time."""
        return self._times[len(self.states)]

    def collect(self, stepper: ArraySolver) -> bool:
        """Take what is due in the step just made; whether anything was."""
        self.now, self.y = stepper.t, stepper.y
        before = len(self.states)
        while not self.complete and (self.due - self.now) * self._direction <= 0:
            self.states.append(self.y if self.due == self.now else stepper.at(self.due))
        return len(self.states) > before
