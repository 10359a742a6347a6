"""Shapes of curves, and whether two groups of points lie apart."""

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError

__all__ = ["largest_share", "largest_step", "linear_accuracy", "sign_changes", "signed_area"]


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
    steps = _steps(curves)
    return float(steps.max() / steps.mean())


def largest_share(curves: Tensor, stretch: int, every: int = 1) -> float:
    """The largest share of the whole change in a family of curves that `stretch` steps in a row make.

    The whole change is the length of the family's way from first to last curve, the sum of the distances between
    neighbours. Where it is finely divided, neither depends on how many curves there are.

    Args:
        curves: shape (n, points, 2); a distance is the root mean square over points.
        stretch: how many steps.
        every: of how many steps a stretch begins at the first one; with `stretch`, they do not overlap.

    Raises:
        InvalidArgumentError: there are no such stretches.
    """
    if not 0 < stretch < len(curves):
        raise InvalidArgumentError(
            f"a stretch among {len(curves)} curves has 1 to {len(curves) - 1} steps, got {stretch}"
        )
    steps = _steps(curves).double()
    return float(steps.unfold(0, stretch, every).sum(1).max() / steps.sum())


def _steps(curves: Tensor) -> Tensor:
    return curves.diff(dim=0).square().sum(-1).mean(-1).sqrt()


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
