"""What gets gradients besides the initial state and the times."""

import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError
from neural_ode.gradients import Adjoint, Direct, Gradient, RecursiveCheckpoint, Reversible
from neural_ode.problem.captured import captured, parameters_of, warn_of_missing

__all__ = ["params_of"]


def params_of(
    f: object,
    gradient: Gradient,
    params: Iterable[Tensor] | None,
    by_default: bool,
    evaluate: Callable[[], Tensor],
) -> tuple[Tensor, ...]:
    """What gets gradients besides the initial state and the times.

    Args:
        by_default: whether the gradient was not asked for: then what a function refers to is found.
        evaluate: the slope at the start.
    """
    f = inspect.unwrap(f) if callable(f) else f
    if params is not None:
        chosen = tuple({id(p): p for p in params}.values())
        for p in chosen:
            if not isinstance(p, Tensor):
                raise InvalidArgumentError(f"params must be tensors, got {type(p).__name__}")
    elif isinstance(gradient, Direct) or isinstance(f, nn.Module):
        chosen = parameters_of(f)
    elif by_default:
        chosen = tuple({id(p): p for p in captured(f).values()}.values())
    elif isinstance(gradient, RecursiveCheckpoint | Adjoint | Reversible):
        raise InvalidArgumentError(
            f"{gradient.name} has to know what gets gradients: make f a torch.nn.Module or pass params=(...); "
            "params=() if only y0 and t do"
        )
    else:
        chosen = ()
    chosen = tuple(p for p in chosen if p.requires_grad)
    if torch.is_grad_enabled() and not isinstance(gradient, Direct) and (chosen or params is None):
        warn_of_missing(f, chosen, getattr(gradient, "name", repr(gradient)), evaluate)
    return chosen
