"""How the user's state, with all that goes with it, is packed into the one tensor that the solvers see."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, finite_number
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.dynamics import GuardedDynamics
from neural_ode.problem.event import Event
from neural_ode.problem.norms import Norm, rms_norm
from neural_ode.problem.state import Dynamics, State, TupleState

__all__ = ["StateLayout", "is_sequence"]


class StateLayout:
    """How the user's state is packed into the one tensor that the solvers see.

    Attributes:
        y0: the packed initial state.
        parts: shapes of a tuple state, `None` for a tensor.
        batched: whether the first dimension of every part is one of samples, which the packed state keeps.
    """

    def __init__(self, y0: State, batched: bool = False):
        self.batched = batched
        parts = y0 if isinstance(y0, tuple) else (y0,)
        if not parts:
            raise InvalidArgumentError("y0 must be a tensor or a tuple of tensors, got an empty tuple")
        for part in parts:
            if not isinstance(part, Tensor):
                raise InvalidArgumentError(f"y0 must be a tensor or a tuple of tensors, got {type(part).__name__}")
            if part.device != parts[0].device:
                raise InvalidArgumentError(
                    f"the tensors of y0 must share a device, got {parts[0].device} and {part.device}: use .to()"
                )
        if batched and len({part.shape[:1] for part in parts} | {torch.Size()}) != 2:
            raise InvalidArgumentError(
                "batched=True needs a first dimension, the same for all tensors of y0; got shapes "
                f"{_show(tuple(part.shape for part in parts))}"
            )
        self.parts: TupleState | None = None
        if isinstance(y0, tuple):
            leading = int(batched)
            self.parts = TupleState(tuple(part.shape[leading:] for part in parts), leading)
            y0 = self.parts.pack(parts)
        if not (y0.is_floating_point() or y0.is_complex()):
            raise InvalidArgumentError(
                f"y0 must be of a floating-point or complex dtype, got {y0.dtype}: use y0.float()"
            )
        self.y0: Tensor = y0

    def pack(self, y: State) -> Tensor:
        """A state in the user's structure, with the shapes of the initial one, packed."""
        if isinstance(y, Tensor):
            return y
        assert self.parts is not None
        return self.parts.pack(y)

    def restore(self, packed: Tensor) -> State:
        """Packed states, shape (*leading, *y0.shape), in the user's structure."""
        return packed if self.parts is None else self.parts.unpack(packed)

    def dynamics(self, f: Callable[[Tensor, Any], Any]) -> Dynamics:
        """`f` on packed states, which neither keeps nor changes what a solver holds."""
        parts = self.parts
        if parts is None:
            return GuardedDynamics(f)

        def dynamics(t: Tensor, y: Tensor) -> Tensor:
            slopes = f(t, parts.unpack(y))
            sequence = isinstance(slopes, tuple | list)
            shapes = tuple(getattr(slope, "shape", None) for slope in slopes) if sequence else None
            expected = tuple(y.shape[: parts.leading] + shape for shape in parts.shapes)
            if shapes != expected:
                raise InvalidArgumentError(
                    f"f(t, y) must return a tuple of tensors with the shapes of y0, {_show(expected)}; "
                    f"got {type(slopes).__name__ if shapes is None else _show(shapes)}"
                )
            return parts.pack(slopes)

        return GuardedDynamics(dynamics)

    def event(self, event: Event) -> Event:
        """The event as one of packed states."""
        return event if self.parts is None else event.on(self.restore)

    def packed_norm(self, norm: Callable[[Any], Tensor] | None) -> Norm:
        """The user's norm as one of packed states; by default the largest root mean square among the parts.

        Raises:
            InvalidArgumentError: it is no function.
        """
        if norm is not None and not callable(norm):
            raise InvalidArgumentError(f"norm must be a function, got {type(norm).__name__}")
        if self.parts is None:
            return norm or rms_norm
        return self.parts.norm if norm is None else lambda x: norm(self.restore(x))

    def callbacks(self, callbacks: Callbacks | None) -> Callbacks:
        """The user's callbacks as ones of packed states."""
        if callbacks is None or self.parts is None:
            return callbacks or Callbacks()

        def restored(call: Callable[..., object] | None) -> Callable[[Tensor, Tensor, Tensor], object] | None:
            return None if call is None else lambda t, y, h: call(t, self.restore(y), h)

        return Callbacks(restored(callbacks.step), restored(callbacks.accept), restored(callbacks.reject))

    def tolerance(self, name: str, value: Any) -> float | Tensor:
        """A tolerance as a number, or as a tensor that broadcasts to the packed state."""
        if isinstance(value, Tensor) and value.requires_grad:
            raise InvalidArgumentError(f"{name} must not require gradients: use {name}.detach()")
        if self.parts is not None and not (isinstance(value, Tensor) and value.dim() == 0) and is_sequence(value):
            values = list(value)
            if len(values) != len(self.parts.shapes):
                raise InvalidArgumentError(
                    f"{name} must be a number or have one entry for each of the {len(self.parts.shapes)} parts of "
                    f"y0, got {len(values)}"
                )
            entries = [
                torch.as_tensor(self._checked(name, entry)).to(self.y0.device).expand(shape).reshape(-1)
                for entry, shape in zip(values, self.parts.shapes, strict=True)
            ]
            return torch.cat(entries)
        if self.parts is None and not isinstance(value, Tensor) and is_sequence(value):
            try:
                value = torch.tensor([finite_number(name, x) for x in value], dtype=torch.float64)
            except InvalidArgumentError:
                raise InvalidArgumentError(
                    f"{name} must be a number, or a tensor or list of numbers that broadcasts to y0, got {value!r}"
                ) from None
        return self._checked(name, value)

    def _checked(self, name: str, value: Any) -> float | Tensor:
        if isinstance(value, Tensor) and value.numel() != 1:
            if not bool(((value >= 0) & value.isfinite()).all()):
                raise InvalidArgumentError(f"{name} must be zero or more everywhere, got {value}")
            entries: Tensor = value.detach().to(self.y0.device)
            if self.parts is None:
                try:
                    entries.expand(self.y0.shape)
                except RuntimeError:
                    raise InvalidArgumentError(
                        f"{name} must broadcast to the shape of y0, {tuple(self.y0.shape)}; it has "
                        f"{tuple(value.shape)}"
                    ) from None
            return entries
        number = finite_number(name, value)
        if number < 0:
            raise InvalidArgumentError(f"{name} must be zero or more, got {value!r}")
        return number


def is_sequence(value: Any) -> bool:
    """Whether the value can be iterated over and is no text."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


def _show(shapes: tuple[Any, ...]) -> str:
    return ", ".join("no tensor" if shape is None else str(tuple(shape)) for shape in shapes)
