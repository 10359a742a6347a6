"""Shapes of curves, and whether two groups of points lie apart."""

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError

__all__ = ["largest_step", "linear_accuracy", "sign_changes", "signed_area"]


def signed_area(curves: Tensor) -> Tensor:
    """Area that curves enclose with the chord between their ends, positive if they turn counter-clockwise.

    The shoelace formula.

    Args:
        curves: shape (…, points, 2).

    Returns:
        Shape (…).
    """
    x, y = curves.unbind(-1)
    return 0.5 * (x * y.roll(-1, -1) - x.roll(-1, -1) * y).sum(-1)


def sign_changes(values: Tensor) -> int:
    """How often the sign changes along `values`, shape (n,); zeros count as nothing."""
    signs = values.sign()
    signs = signs[signs != 0]
    return int((signs[1:] != signs[:-1]).sum())


def largest_step(curves: Tensor) -> float:
    """The largest distance between neighbours in a family of curves, over the mean one.

    Args:
        curves: shape (n, points, 2); a distance is the root mean square over points.

    Raises:
        InvalidArgumentError: there are fewer than three curves.
    """
    if len(curves) < 3:
        raise InvalidArgumentError(f"steps are compared among three curves or more, got {len(curves)}")
    steps = curves.diff(dim=0).square().sum(-1).mean(-1).sqrt()
    return float(steps.max() / steps.mean())


def linear_accuracy(points: Tensor, group: Tensor) -> tuple[int, int]:
    """How well a line separates two groups: least squares, fitted to every second point, tried on the rest.

    Args:
        points: shape (n, dimensions).
        group: bool, shape (n,).

    Returns:
        How many of the rest are classified correctly, and how many there are.
    """
    order = torch.cat([group.nonzero()[:, 0], (~group).nonzero()[:, 0]])
    inputs = torch.cat([points, torch.ones_like(points[:, :1])], dim=1).double()[order]
    target = torch.where(group, 1.0, -1.0).double()[order]
    weights = torch.linalg.lstsq(inputs[::2], target[::2, None]).solution[:, 0]
    right = (inputs[1::2] @ weights).sign() == target[1::2]
    return int(right.sum()), len(right)
