"""Shapes of curves, against figures that are known."""

import math

import pytest
import torch

from neural_ode.errors import InvalidArgumentError
from reproduction.measure.curves import largest_share, largest_step, linear_accuracy, sign_changes, signed_area


def test_area_of_a_circle_and_its_sign() -> None:
    angle = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)
    circle = torch.stack([3 + 2 * angle.cos(), 2 * angle.sin() - 7], dim=-1)
    both = torch.stack([circle, circle.flip(0)])
    torch.testing.assert_close(
        signed_area(both), torch.tensor([4 * math.pi, -4 * math.pi]).double(), rtol=1e-5, atol=0
    )
    half = circle[:1001]
    assert float(signed_area(half)) == pytest.approx(2 * math.pi, rel=1e-5)


def test_sign_changes() -> None:
    assert sign_changes(torch.tensor([1.0, 2.0, -1.0, 0.0, -3.0])) == 1
    assert sign_changes(torch.tensor([1.0, -2.0, 1.0])) == 2
    assert sign_changes(torch.tensor([1.0, 0.0, 1.0])) == 0


def test_largest_step_of_even_and_uneven_families() -> None:
    base = torch.randn(50, 2)
    shift = torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None, None]
    assert largest_step(base + shift) == pytest.approx(1, rel=1e-4)
    assert largest_step(base + torch.tensor([0.0, 1.0, 2.0, 9.0])[:, None, None]) == pytest.approx(7 / 3, rel=1e-4)
    with pytest.raises(InvalidArgumentError, match="three curves or more, got 2"):
        largest_step(base.expand(2, -1, -1))


def test_largest_share_does_not_depend_on_how_many_curves_there_are() -> None:
    """Curves that are moved: evenly, and three quarters of the way in the second tenth of it."""
    base = torch.randn(50, 2, dtype=torch.float64)
    for n in (20, 400):
        at = torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None, None]
        assert largest_share(base + at, n // 10) == pytest.approx(0.1)
        uneven = at * 5 / 18 + (at - 0.1).clamp(0, 0.1) * (7.5 - 5 / 18)
        assert largest_share(base - uneven, n // 10) == pytest.approx(0.75)
    # A change in two steps, on either side of the boundary of two of ten equal parts.
    halves = (torch.arange(21) >= 10).double() + (torch.arange(21) >= 11).double()
    assert largest_share(base + halves[:, None, None], 2) == pytest.approx(1)
    assert largest_share(base + halves[:, None, None], 2, 2) == pytest.approx(0.5)
    with pytest.raises(InvalidArgumentError, match="has 1 to 2 steps, got 3"):
        largest_share(base.expand(3, -1, -1), 3)


def test_linear_accuracy_of_groups_apart_and_of_one_cloud() -> None:
    group = torch.arange(400) % 2 == 0
    cloud = torch.randn(400, 2)
    apart = cloud + torch.where(group, 8.0, -8.0)[:, None] + 30
    assert linear_accuracy(apart, group) == (200, 200)
    right, n = linear_accuracy(cloud, group)
    assert n == 200
    assert abs(right - 100) < 5 * math.sqrt(200) / 2
