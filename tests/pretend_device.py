"""A device that is not there.

Tensors on it hold their values in tensors of the CPU, but say that they are elsewhere, and an operation that mixes
them with tensors of the CPU fails as it would with a GPU: only a CPU tensor without dimensions may take part. So a
tensor that is made in the wrong place is found on a machine without a GPU. PyTorch's own fake tensors can do the
same, but hold no values, and an adaptive solver asks for values at every step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["DEVICE", "PretendDeviceError", "pretend_device", "to_cpu", "to_device", "waits"]

DEVICE = torch.device("meta")
"""A name for it that PyTorch knows; autograd treats it as it treats the CPU, which it does not do with "cuda"."""


class PretendDeviceError(RuntimeError):
    """Tensors of two devices have met."""


class Elsewhere(Tensor):
    """A tensor of the device, around one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        assert held.device.type == "cpu", held
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(op, args, dict(kwargs or {}))


class _Makes(TorchDispatchMode):
    """Makes tensors on the device where one is asked for."""

    def __torch_dispatch__(
        self, op: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(op, args, dict(kwargs or {}))


_SIZES_FROM_VALUES = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
_waited = 0


def waits() -> int:
    """How often values have come from the device or gone there so far: a program waits for a GPU each time."""
    return _waited


def _by_mask(name: str, args: Sequence[Any]) -> bool:
    """How many entries a mask chooses is known when it has been computed."""
    indices = args[1] if name.startswith("aten::index") and isinstance(args[1], list | tuple) else ()
    return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices)


_MOVES = ("aten::_to_copy", "aten::copy_", "aten::set_", "aten::_pin_memory")


def _run(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    global _waited
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    here = [x for x in tensors if not isinstance(x, Elsewhere)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    name = op.name().split(".")[0]
    # Indices of a tensor of the device may lie on the CPU, PyTorch moves them; lengths of sequences must.
    allowed: Sequence[Any] = ()
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        allowed = args[1] if isinstance(args[0], Elsewhere) else ()
    misplaced = [x for x in here if x.dim() > 0 and all(x is not index for index in allowed)]
    if name.startswith("aten::_pack_padded_sequence"):
        misplaced = []
    if there and misplaced and name not in _MOVES:
        raise PretendDeviceError(f"{name} of tensors of two devices, shapes {[tuple(x.shape) for x in tensors]}")
    asked = kwargs.get("device")
    wanted = bool(there) if asked is None else torch.device(asked) == DEVICE
    if name == "aten::copy_":
        wanted = isinstance(args[0], Elsewhere)
    # Memory that is not pinned is copied while both sides wait.
    moved = name in _MOVES and any(isinstance(x, Elsewhere) != wanted for x in tensors)
    _waited += moved or (bool(there) and (name in _SIZES_FROM_VALUES or _by_mask(name, args)))
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    if name == "aten::_local_scalar_dense":
        wanted = False
    inner_args, inner_kwargs = tree_map(to_cpu, (tuple(args), kwargs))
    found = op(*inner_args, **inner_kwargs)
    if not wanted:
        return found
    if name == "aten::_pack_padded_sequence":
        return Elsewhere(found[0]), found[1]
    # What was changed in place is given back as it came in.
    known = {id(x.held): x for x in there}
    return tree_map(lambda x: known.get(id(x), Elsewhere(x)) if type(x) is Tensor else x, found)


def to_cpu(x: Any) -> Any:
    """The values of a tensor of the device; anything else as it is."""
    return x.held if isinstance(x, Elsewhere) else x


def to_device(x: Any) -> Any:
    """Tensors in tuples and lists, or the parameters and buffers of a module, on the device."""
    if isinstance(x, torch.nn.Module):
        for module in x.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    moved = torch.nn.Parameter(Elsewhere(parameter.detach().clone()), parameter.requires_grad)
                    module._parameters[name] = moved
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = Elsewhere(buffer.detach().clone())
        return x
    return tree_map(lambda y: Elsewhere(y.detach().clone()) if isinstance(y, Tensor) else y, x)


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Within, the device is there."""
    # torch.compile notes once what the functions of PyTorch are: not while they are replaced.
    torch._dynamo.trace_rules.lookup(torch.tensor)
    with _Makes(), ExitStack() as stack:
        for name in ("get_autocast_dtype", "is_autocast_enabled", "autocast"):
            stack.enter_context(patch.object(torch, name, _for_cpu(getattr(torch, name))))
        # These build without asking the mode.
        for name in ("tensor", "as_tensor"):
            stack.enter_context(patch.object(torch, name, _built(getattr(torch, name))))
        stack.enter_context(patch.object(Tensor, "new_tensor", _new(Tensor.new_tensor)))
        # A module that changes its dtype would put another tensor into a parameter, behind the back of its wrapper.
        overwrites = "torch.__future__._overwrite_module_params_on_conversion"
        stack.enter_context(patch(overwrites, True))
        stack.enter_context(patch.object(torch.nn.RNN, "forward", _time_first(torch.nn.RNN.forward)))
        yield DEVICE


def _for_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast does not know the device: it is set as for the CPU."""
    return lambda kind, *rest, **given: function("cpu" if kind == DEVICE.type else kind, *rest, **given)


def _built(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def build(data: Any, *, device: Any = None, **given: Any) -> Tensor:
        if device is None or torch.device(device) != DEVICE:
            return function(data, device=device, **given)
        if isinstance(data, Tensor):
            return data.to(DEVICE, given.get("dtype"))
        global _waited
        _waited += 1
        return Elsewhere(function(data, **given))

    return build


def _new(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def build(like: Tensor, data: Any, **given: Any) -> Tensor:
        if not isinstance(like, Elsewhere):
            return function(like, data, **given)
        return torch.tensor(data, dtype=given.pop("dtype", like.dtype), device=given.pop("device", DEVICE), **given)

    return build


def _time_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch turns the series of a recurrent network round in place, which the device cannot follow."""

    def forward(network: torch.nn.RNN, series: Any, *rest: Any) -> Any:
        if not (network.batch_first and isinstance(series, Elsewhere)):
            return function(network, series, *rest)
        with patch.object(network, "batch_first", False):
            found, last = function(network, series.transpose(0, 1), *rest)
        return found.transpose(0, 1), last

    return forward
