"""A disc and a ring round it, which no continuous flow of the plane can separate by a line."""

import math

import torch
from torch import Tensor

__all__ = ["annuli"]

INNER, RING = 0.5, (1.0, 1.5)
"""The radius of the disc, and the two of the ring (Dupont et al. 2019, section 3.2, in two dimensions)."""


def annuli(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points spread evenly over the disc, of class -1, and over the ring, of class 1.

    Args:
        n: how many; a third of them, rounded down, lies in the disc.
        seed: of the random numbers.

    Returns:
        Points, shape (n, 2), and classes, shape (n,), float32, in random order.
    """
    generator = torch.Generator().manual_seed(seed)
    inside = torch.arange(n) < n // 3
    low, high = (torch.where(inside, a**2, b**2) for a, b in ((0.0, RING[0]), (INNER, RING[1])))
    radius = (low + (high - low) * torch.rand(n, generator=generator)).sqrt()
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    order = torch.randperm(n, generator=generator)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return points[order], torch.where(inside, -1.0, 1.0)[order]
