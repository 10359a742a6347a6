"""The base distribution of all flows, and what is checked of their inputs."""

import math

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError

__all__ = ["check_points", "draw_base", "positive", "standard_normal"]


def standard_normal(z: Tensor) -> Tensor:
    """Log-density of the standard normal distribution, in nats, at `z` of shape (..., n, dim); shape (..., n)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def draw_base(n: int, like: Tensor, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """`n` points of the standard normal distribution, shape (n, dim), with dtype and device of `like`.

    Raises:
        InvalidArgumentError: `n` is no whole number of at least one.
    """
    return torch.randn(positive("n", n), dim, dtype=like.dtype, device=like.device, generator=generator)


def check_points(name: str, z: Tensor, dim: int) -> Tensor:
    """`z`, if it is a floating-point tensor of shape (n, dim).

    Raises:
        InvalidArgumentError: it is not.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise InvalidArgumentError(f"{name} must be a floating-point tensor, got {kind}")
    if z.dim() != 2 or z.shape[1] != dim:
        raise InvalidArgumentError(f"{name} must have shape (n, {dim}), got {tuple(z.shape)}")
    return z


def positive(name: str, value: int) -> int:
    """`value`, if it is a whole number of at least one.

    Raises:
        InvalidArgumentError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgumentError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value
