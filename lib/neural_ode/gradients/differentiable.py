"""Gradients that can be differentiated again, for choices whose backward pass is no recorded computation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, NeuralODEError
from neural_ode.problem.dependence import gradients, own_parts

__all__ = [
    "Autocast",
    "ReverseMode",
    "explain_transforms",
    "refuse_transforms",
    "twice_differentiable",
]


def twice_differentiable(
    function: Callable[..., Sequence[Tensor]], free: Sequence[Tensor], bound: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`function(*free, *bound)`, with derivatives of any order by computing it again.

    Args:
        function: called without grad mode for its values, with grad mode for its derivatives; then its results have
            to be attached to the graph of its arguments.
        free: arguments that it sees only as such. Derivatives are taken with respect to copies of them.
        bound: arguments that it also knows otherwise, such as the parameters of a module.
    """
    results: tuple[Tensor, ...] = _Recomputed.apply(function, len(free), *free, *bound)
    return results


class ReverseMode(torch.autograd.Function):
    """A function without forward mode."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refused.

        Raises:
            InvalidArgumentError: always.
        """
        raise InvalidArgumentError(
            "forward mode needs gradient='direct': the other choices know how to go backwards only"
        )


class _Recomputed(ReverseMode):
    """A function that keeps its arguments only; its vector-Jacobian product is such a function again."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Sequence[Tensor]], free: int, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.function, ctx.free = function, free
        ctx.save_for_backward(*inputs)
        return tuple(function(*inputs))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        function, count = ctx.function, ctx.free
        inputs = ctx.saved_tensors

        def pull(*arguments: Tensor) -> Sequence[Tensor]:
            further = torch.is_grad_enabled()
            free, rest = arguments[:count], arguments[count:]
            along, bound = rest[: len(cotangents)], rest[len(cotangents) :]
            with torch.enable_grad():
                copies = free if further else [x.detach().requires_grad_() for x in free]
                results = function(*copies, *bound)
            found = gradients(results, (*copies, *bound), along, create_graph=further)
            return [*found[:count], *own_parts(bound, found[count:])]

        return None, None, *twice_differentiable(pull, (*inputs[:count], *cotangents), inputs[count:])


@contextmanager
def explain_transforms() -> Iterator[None]:
    """Turns what PyTorch says when a transform of `torch.func` meets a solver into what to do about it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, NeuralODEError) or not torch._C._are_functorch_transforms_active():
            raise
        if "vmap" in str(error):
            raise InvalidArgumentError(
                "solve cannot be mapped by torch.func.vmap: it decides about steps by the values of the states. "
                "Give y0 a batch dimension instead, with batched=True if each row is to have steps of its own"
            ) from error
        if "functorch" in str(error):
            raise InvalidArgumentError(
                "this solve cannot be differentiated by torch.func, because its method, or f, calls torch.autograd "
                "itself: use an explicit method, such as dopri5, or torch.autograd.grad"
            ) from error
        raise


def refuse_transforms(name: str) -> None:
    """These gradients are found by PyTorch's reverse mode, which the transforms of `torch.func` do not see.

    Raises:
        InvalidArgumentError: one of them is at work.
    """
    if torch._C._are_functorch_transforms_active():
        raise InvalidArgumentError(
            f"gradient={name!r} does not work inside torch.func.grad, jvp, vmap and the like: use "
            "gradient='direct' there, or torch.autograd.grad, torch.autograd.functional and .backward() instead"
        )


class Autocast:
    """Remembers how autocast was set, to evaluate the dynamics in the backward pass as in the forward pass."""

    def __init__(self, device: torch.device):
        kind = device.type
        self.settings = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        kind, dtype, enabled = self.settings
        with torch.autocast(kind, dtype, enabled):
            yield
