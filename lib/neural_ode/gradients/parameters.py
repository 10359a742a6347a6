"""What gets gradients besides the initial state and the times."""

import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError
from neural_ode.gradients import Gradient
from neural_ode.problem.captured import captured, parameters_of, warn_of_missing

__all__ = ["params_of"]


def params_of(
    f: object,
    gradient: Gradient,
    params: Iterable[Tensor] | None,
    look: bool,
    evaluate: Callable[[], Tensor],
) -> tuple[Tensor, ...]:
    """The tensors besides `y0` and `t` that get gradients; warns of those that `f` uses and that get none.

    Args:
        f: the user's dynamics.
        gradient: how they are found.
        params: what the user said they are.
        look: whether to look for what a function refers to, if nothing was said.
        evaluate: the slope at the start.

    Raises:
        InvalidArgumentError: they are no tensors, or have to be known and are not.
    """
    f = inspect.unwrap(f) if callable(f) else f
    name, needed = getattr(gradient, "name", repr(gradient)), getattr(gradient, "needs_params", None)
    if params is not None:
        chosen = tuple({id(p): p for p in params}.values())
        for p in chosen:
            if not isinstance(p, Tensor):
                raise InvalidArgumentError(f"params must be tensors, got {type(p).__name__}")
    elif needed is False or isinstance(f, nn.Module):
        chosen = parameters_of(f)
    elif look:
        chosen = tuple({id(p): p for p in captured(f).values()}.values())
    elif needed:
        raise InvalidArgumentError(
            f"{name} has to know what gets gradients: make f a torch.nn.Module or pass params=(...); params=() if "
            "only y0 and t do"
        )
    else:
        chosen = ()
    chosen = tuple(p for p in chosen if p.requires_grad)
    if torch.is_grad_enabled() and needed is not False and (chosen or params is None):
        warn_of_missing(f, chosen, name, evaluate)
    return chosen
