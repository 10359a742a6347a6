"""The user's dynamics as the solvers may rely on them: what goes in stays as it was, what comes out stays.

A solver holds on to slopes while it asks for the next ones, and to the state that it asks about. Dynamics written
for speed break both: they return the same memory every time (`torch.mv(A, y, out=buffer)`), or work in place on
their argument.
"""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from neural_ode.errors import InvalidArgumentError
from neural_ode.problem.state import Dynamics, real_dtype

__all__ = ["GuardedDynamics", "check_slope"]

_WATCHED = 8
"""How many of the first evaluations are watched: memory that is reused in turn, too, comes back by then."""


class GuardedDynamics:
    """`f(t, y)` that neither keeps nor changes what a solver holds.

    The first slopes are copied, and their memory is remembered: if `f` returns any of it again, or writes into the
    slope that it returned last, all slopes are copied from there on. The first evaluation gets copies of its
    arguments: if `f` writes into them, all do. Of other dynamics only the memory of the last
    slope is remembered from there on, and what is written into it, or into the arguments, is refused.

    Attributes:
        f: the dynamics; gets its time in the real dtype of the state, whatever dtype the solver counts in.
    """

    def __init__(self, f: Dynamics):
        self.f = f
        self._calls = 0
        self._copies_slopes = False
        self._copies_arguments = False
        self._returned: dict[int, StorageWeakRef] = {}
        self._last: tuple[Tensor, int] | None = None
        self._memory: tuple[Any, int] | None = None

    def __call__(self, t: Tensor, y: Tensor) -> Any:
        """
        Raises:
            InvalidArgumentError: `f` wrote into its arguments or its last slope, which it had not done at first.
        """
        if t.dtype != y.dtype:
            t = t.to(real_dtype(y))
        if torch.compiler.is_compiling():  # graphs take copies that nobody needs out again
            return _copied(self.f(t, y.clone() if self._copies_arguments else y))
        if torch._C._are_functorch_transforms_active():  # whose tensors have no memory to compare
            return _copied(self.f(t.clone(), y.clone()))
        if self._calls < _WATCHED or self._copies_slopes or self._copies_arguments:
            return self._watched(t, y)
        before = y._version + t._version
        slope = self.f(t, y)
        if y._version + t._version != before:
            raise InvalidArgumentError(
                f"f(t, y) changed its arguments in place at t = {_number(t)}, with which the solver goes on: work "
                "on a copy, y.clone(), or return a new tensor"
            )
        if isinstance(slope, Tensor) and slope.layout == torch.strided and not slope.is_inference():
            memory, last = (slope.untyped_storage(), slope._version), self._memory
            if last is not None and memory[0]._cdata == last[0]._cdata and memory[1] != last[1]:
                raise InvalidArgumentError(
                    f"f(t, y) wrote at t = {_number(t)} into the slope that it returned the time before, which the "
                    "solver still needs: return a new tensor, or a copy"
                )
            self._memory = memory
        return slope

    def _watched(self, t: Tensor, y: Tensor) -> Any:
        self._calls += 1
        if torch.is_inference_mode_enabled():  # where writing leaves no trace
            self._copies_arguments = True
        if self._calls > 1 and not self._copies_arguments:
            return self._kept(self.f(t, y))
        t, y = t.clone(), y.clone()
        if self._copies_arguments:
            return self._kept(self.f(t, y))
        before = y._version + t._version
        slope = self.f(t, y)
        self._copies_arguments = y._version + t._version != before
        return self._kept(slope)

    def _kept(self, slope: Any) -> Any:
        """The slope in memory of its own."""
        if not isinstance(slope, Tensor) or slope.layout != torch.strided:
            return slope
        storage = slope.untyped_storage()
        written = self._last is not None and self._last[0]._version != self._last[1]
        if storage._cdata in self._returned or written:
            self._copies_slopes = True
        # The reference keeps the number from being given to other memory, not the memory alive.
        # PyTorch's class has no types.
        self._returned[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._last = None if slope.is_inference() else (slope.detach(), slope._version)
        if self._calls >= _WATCHED:
            self._returned.clear()
            self._last = None
        return slope.clone()


def check_slope(slope: Any, y: Tensor) -> None:
    """Whether what the dynamics returned is a derivative of the state.

    Raises:
        InvalidArgumentError: it is no tensor, or one of another shape, dtype or device than `y`.
    """
    if not isinstance(slope, Tensor):
        raise InvalidArgumentError(f"f(t, y) must return a tensor like y, got {type(slope).__name__}")
    if slope.shape != y.shape or slope.dtype != y.dtype or slope.device != y.device:
        swapped = "; f is called as f(t, y), with the time first" if slope.dim() == 0 < y.dim() else ""
        raise InvalidArgumentError(
            f"f(t, y) must have the shape, dtype and device of y, which are {tuple(y.shape)}, {y.dtype} and "
            f"{y.device}; it has {tuple(slope.shape)}, {slope.dtype} and {slope.device}{swapped}"
        )


def _copied(slope: Any) -> Any:
    return slope.clone() if isinstance(slope, Tensor) else slope


def _number(t: Tensor) -> float:
    return float(t.detach().reshape(-1)[0])
