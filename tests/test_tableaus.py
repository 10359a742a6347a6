"""The coefficients against the order conditions, in exact arithmetic, and the orders that are observed."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from scipy.linalg import null_space
from torch import Tensor

from neural_ode.methods.runge_kutta import ExplicitRungeKutta
from neural_ode.methods.tableaus.butcher import ButcherTableau
from neural_ode.methods.tableaus.dopri8 import DOPRI8
from neural_ode.methods.tableaus.explicit import (
    ADAPTIVE_HEUN,
    BOSH3,
    DOPRI5,
    EULER,
    FEHLBERG2,
    HEUN2,
    HEUN3,
    MIDPOINT,
    RK4,
    TSIT5,
)

FIXED = [EULER, MIDPOINT, HEUN2, HEUN3, RK4]
ADAPTIVE = [ADAPTIVE_HEUN, FEHLBERG2, BOSH3, DOPRI5, TSIT5, DOPRI8]
FSAL = [FEHLBERG2, BOSH3, DOPRI5, TSIT5, DOPRI8]

each = pytest.mark.parametrize("tableau", FIXED + ADAPTIVE, ids=lambda tableau: tableau.name)
each_adaptive = pytest.mark.parametrize("tableau", ADAPTIVE, ids=lambda tableau: tableau.name)
each_fsal = pytest.mark.parametrize("tableau", FSAL, ids=lambda tableau: tableau.name)

EMBEDDED_ORDER = {"adaptive_heun": 1, "fehlberg2": 1, "bosh3": 2, "dopri5": 4, "tsit5": 4, "dopri8": 7}
DENSE_ORDER = {"adaptive_heun": 2, "fehlberg2": 2, "bosh3": 3, "dopri5": 4, "tsit5": 4, "dopri8": 5}

# The fractions of dopri8 are approximations that Prince & Dormand made, good to about 18 digits; those of tsit5 are
# decimals, with 25. The conditions multiply them up. Of the other methods they hold exactly.
TOLERANCE = {"tsit5": Fraction(1, 10**22), "dopri8": Fraction(1, 10**16)}

Tree = tuple["Tree", ...]


@cache
def trees(order: int) -> list[Tree]:
    """The rooted trees with so many vertices, each the tuple of the trees that grow from its root."""

    def forests(vertices: int, largest: int) -> Iterator[Tree]:
        if not vertices:
            yield ()
        for n in range(1, min(vertices, largest) + 1):
            for first in trees(n):
                for rest in forests(vertices - n, n):
                    if not rest or (size(rest[0]), rest[0]) <= (n, first):
                        yield (first, *rest)

    return list(forests(order - 1, order - 1))


@cache
def size(tree: Tree) -> int:
    return 1 + sum(size(child) for child in tree)


@cache
def density(tree: Tree) -> int:
    """γ(tree)."""
    return size(tree) * math.prod(density(child) for child in tree)


@cache
def symmetry(tree: Tree) -> int:
    """σ(tree)."""
    return math.prod(
        math.factorial(tree.count(child)) * symmetry(child) ** tree.count(child) for child in set(tree)
    )


@cache
def stage_weights(tableau: ButcherTableau, tree: Tree) -> list[Fraction]:
    """Φ_i(tree) of each stage."""
    result = [Fraction(1)] * tableau.stages
    for child in tree:
        inner = stage_weights(tableau, child)
        for i, row in enumerate(tableau.a):
            result[i] *= sum((a * inner[j] for j, a in enumerate(row) if a), Fraction(0))
    return result


def defect(tableau: ButcherTableau, weights: tuple[Fraction, ...], tree: Tree) -> Fraction:
    """How far an order condition is from being satisfied."""
    phi = stage_weights(tableau, tree)
    return sum((w * x for w, x in zip(weights, phi, strict=True)), Fraction(0)) - Fraction(1, density(tree))


def conditions(tableau: ButcherTableau, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Φ_i(τ) / σ(τ) and 1 / (γ(τ) σ(τ)), a row for each tree τ of this order."""
    rows = [[float(x) / symmetry(tree) for x in stage_weights(tableau, tree)] for tree in trees(order)]
    return np.array(rows), np.array([1 / (density(tree) * symmetry(tree)) for tree in trees(order)])


def tolerance(tableau: ButcherTableau) -> Fraction:
    return TOLERANCE.get(tableau.name, Fraction(0))


def dense_rows(tableau: ButcherTableau) -> tuple[tuple[Fraction, ...], ...]:
    assert tableau.dense is not None
    return tableau.dense


def test_trees_are_complete() -> None:
    """1, 1, 2, 4, 9, … rooted trees (Hairer, Nørsett & Wanner I, table II.2.3), of the right size and different."""
    assert [len(set(trees(order))) for order in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]
    assert all(size(tree) == order for order in range(1, 10) for tree in trees(order))


@pytest.mark.parametrize("order", [3, 5, 7])
def test_densities_and_symmetries_of_trees(order: int) -> None:
    """The n! / (γ σ) monotonic labellings of all trees of order n are (n-1)! together."""
    labellings = sum(Fraction(math.factorial(order), density(tree) * symmetry(tree)) for tree in trees(order))
    assert labellings == math.factorial(order - 1)


@each
def test_nodes_are_row_sums(tableau: ButcherTableau) -> None:
    for c, row in zip(tableau.c, tableau.a, strict=True):
        assert abs(sum(row, Fraction(0)) - c) <= tolerance(tableau)


@each
def test_order_conditions(tableau: ButcherTableau) -> None:
    for order in range(1, tableau.order + 1):
        for tree in trees(order):
            assert abs(defect(tableau, tableau.b, tree)) <= tolerance(tableau), (order, tree)


@each
def test_the_order_is_not_higher_than_stated(tableau: ButcherTableau) -> None:
    phi, target = conditions(tableau, tableau.order + 1)
    assert np.abs(phi @ [float(b) for b in tableau.b] - target).max() > 1e-7


@each_adaptive
def test_order_of_the_embedded_method(tableau: ButcherTableau) -> None:
    assert tableau.b_error is not None
    embedded = tuple(b - e for b, e in zip(tableau.b, tableau.b_error, strict=True))
    order = EMBEDDED_ORDER[tableau.name]
    for lower in range(1, order + 1):
        for tree in trees(lower):
            assert abs(defect(tableau, embedded, tree)) <= tolerance(tableau)
    assert any(abs(defect(tableau, embedded, tree)) > 1e-6 for tree in trees(order + 1))


@each
def test_which_methods_are_first_same_as_last(tableau: ButcherTableau) -> None:
    assert tableau.fsal == (tableau in FSAL)


@each
def test_every_adaptive_method_has_a_dense_output(tableau: ButcherTableau) -> None:
    assert (tableau.dense is not None) == (tableau.b_error is not None) == (tableau in ADAPTIVE)


@each_adaptive
def test_order_of_the_dense_output(tableau: ButcherTableau) -> None:
    """Σ b_i(θ) Φ_i(τ) = θ^q / γ(τ), power by power, so for all θ."""
    for order in range(1, DENSE_ORDER[tableau.name] + 1):
        for power, weights in enumerate(zip(*dense_rows(tableau), strict=True), start=1):
            for tree in trees(order):
                missing = 0 if power == order else Fraction(1, density(tree))
                assert abs(defect(tableau, weights, tree) + missing) <= tolerance(tableau) * 10


@pytest.mark.parametrize("tableau", [DOPRI5, TSIT5, DOPRI8], ids=lambda tableau: tableau.name)
def test_no_dense_output_from_these_stages_has_a_higher_order(tableau: ButcherTableau) -> None:
    """The conditions on the coefficients of one power of θ contradict each other from the next order on.

    That of the other methods has the order of the method.
    """

    def contradiction(highest: int) -> float:
        phi, target = zip(*(conditions(tableau, order) for order in range(1, highest + 1)), strict=True)
        A = np.concatenate(phi)
        residuals = []
        for power in range(1, highest + 1):
            rhs = np.concatenate([t * (order == power) for order, t in enumerate(target, start=1)])
            residuals.append(np.abs(A @ np.linalg.lstsq(A, rhs, rcond=1e-12)[0] - rhs).max())
        return float(max(residuals))

    assert contradiction(DENSE_ORDER[tableau.name]) < 1e-12
    assert contradiction(DENSE_ORDER[tableau.name] + 1) > 1e-4


@each_adaptive
def test_dense_output_starts_and_ends_at_the_states(tableau: ButcherTableau) -> None:
    """b_i(1) = b_i, and the slope at the start is the first stage."""
    rows = dense_rows(tableau)
    assert tuple(sum(row, Fraction(0)) for row in rows) == tableau.b
    assert [row[0] for row in rows] == [1] + [0] * (tableau.stages - 1)


@each_fsal
def test_dense_output_joins_smoothly(tableau: ButcherTableau) -> None:
    """The slope at the end of a step is the last stage, which is the slope at the start of the next."""
    slopes = [sum(((p + 1) * c for p, c in enumerate(row)), Fraction(0)) for row in dense_rows(tableau)]
    assert slopes == [0] * (tableau.stages - 1) + [1]


def test_dense_output_of_dopri8_is_the_best_of_its_kind() -> None:
    """What the comment on its coefficients says it minimises has no slope in any direction that is left."""
    rows = np.array([[float(x) for x in row] for row in dense_rows(DOPRI8)])
    used = [i for i in range(14) if rows[i].any()]
    assert used == [0, *range(5, 14)]
    nodes, quadrature = np.polynomial.legendre.leggauss(12)
    theta, quadrature = (nodes + 1) / 2, quadrature / 2
    bump = (theta * (1 - theta)) ** 2
    weights = rows[used] @ theta ** np.arange(1, 7)[:, None]
    free = null_space(np.vander([float(DOPRI8.c[i]) for i in used], 5).T)
    # b_i(θ) = … + θ² (1-θ)² (p_i0 + p_i1 θ + p_i2 θ²): from θ⁴, θ⁵ and θ⁶, lowest first.
    p2 = rows[used, 5]
    p1 = rows[used, 4] + 2 * p2
    p0 = rows[used, 3] + 2 * p1 - p2
    for power, p in enumerate((p0, p1, p2)):
        slope, terms = 1e-16 * (free.T @ p), 0.0
        for order, weight in ((6, 1.0), (7, 0.25), (8, 0.0625)):
            phi, target = conditions(DOPRI8, order)
            error = phi[:, used] @ weights - np.outer(target, theta**order)
            each_node = weight * quadrature * bump * theta**power * (free.T @ phi[:, used].T @ error)
            slope = slope + each_node.sum(1)
            terms += np.abs(each_node).sum()
        assert np.abs(slope).max() < 1e-9 * terms


@each_adaptive
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 4e-15), (torch.float32, 2e-6)])
def test_dense_output_is_evaluated_without_cancellation(
    tableau: ButcherTableau, dtype: torch.dtype, accuracy: float
) -> None:
    theta = torch.linspace(0, 1, 33, dtype=dtype)
    exact = [
        [float(sum(c * Fraction(x) ** p for p, c in enumerate(row, start=1))) for row in dense_rows(tableau)]
        for x in theta.tolist()
    ]
    stages = torch.eye(tableau.stages, dtype=dtype).unbind()
    weights = ExplicitRungeKutta(tableau).interpolate(torch.zeros_like(stages[0]), stages, 1.0, theta)
    torch.testing.assert_close(weights.double(), torch.tensor(exact, dtype=torch.float64), rtol=0, atol=accuracy)


# A nonlinear and non-autonomous system with the solution φ(t): y' = g(y) - g(φ(t)) + φ'(t).


def known_solution(t: Tensor) -> Tensor:
    return torch.stack([torch.sin(2 * t), torch.cos(3 * t)], dim=-1)


def g(y: Tensor) -> Tensor:
    u, v = y.unbind(-1)
    return torch.stack([u * v - 2 * v, 3 * torch.sin(2 * u) - v**2 * u], dim=-1)


def dynamics(t: Tensor, y: Tensor) -> Tensor:
    slope = torch.stack([2 * torch.cos(2 * t), -3 * torch.sin(3 * t)], dim=-1)
    return g(y) - g(known_solution(t)) + slope


def observed_order(error: Callable[[float], float], h: float) -> float:
    return math.log2(error(h) / error(h / 2))


# Small enough to see the order, large enough that errors do not drown in rounding.
STEP = {1: 0.01, 2: 0.01, 3: 0.02, 4: 0.04, 5: 0.04, 8: 0.1}


@each
def test_observed_order(tableau: ButcherTableau) -> None:
    method = ExplicitRungeKutta(tableau)

    def error(h: float) -> float:
        y, carry, total = known_solution(torch.tensor(0.0, dtype=torch.float64)), None, 0.0
        for n in range(round(2 / h)):
            t = torch.tensor(n * h, dtype=torch.float64)
            step = method.step(dynamics, t, y, h, carry)
            y, carry = step.y1, step.carry
            total += h * float((y - known_solution(t + h)).norm())
        return total

    # The leading error of dopri5 and tsit5 is so small that they look like order 6 until rounding takes over.
    assert tableau.order - 0.2 < observed_order(error, STEP[tableau.order]) < tableau.order + 1.3


@each_adaptive
def test_observed_order_of_the_dense_output_and_of_the_error_estimate(tableau: ButcherTableau) -> None:
    """Over one step from the exact solution, so one more than the order."""
    method = ExplicitRungeKutta(tableau)
    t = torch.linspace(0.0, 2.0, 9, dtype=torch.float64)[:, None]

    def one_step(h: float) -> tuple[float, float]:
        theta = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        inside, estimates = [], []
        for start in t:
            y = known_solution(start[0])
            step = method.step(dynamics, start[0], y, h, None)
            assert step.error is not None
            states = method.interpolate(y, step.dense, h, theta)
            inside.append((states - known_solution(start + h * theta)).norm())
            estimates.append(step.error.norm())
        return float(torch.stack(inside).mean()), float(torch.stack(estimates).mean())

    h = STEP[tableau.order]
    dense = observed_order(lambda h: one_step(h)[0], h)
    estimate = observed_order(lambda h: one_step(h)[1], h)
    assert DENSE_ORDER[tableau.name] + 0.8 < dense < DENSE_ORDER[tableau.name] + 1.6
    assert estimate == pytest.approx(EMBEDDED_ORDER[tableau.name] + 1, abs=0.3)


@each_adaptive
def test_cost_and_what_is_carried_over(tableau: ButcherTableau) -> None:
    """A rejected or first step evaluates every stage; after an accepted one the last stage is the first."""
    method, t = ExplicitRungeKutta(tableau), torch.tensor(0.3, dtype=torch.float64)
    first = method.step(dynamics, t, known_solution(t), 0.1, None)
    assert first.nfe == tableau.stages
    if tableau.fsal:
        torch.testing.assert_close(first.carry, dynamics(t + 0.1, first.y1))
        assert method.step(dynamics, t + 0.1, first.y1, 0.1, first.carry).nfe == tableau.stages - 1
    else:
        assert first.carry is None


@each
def test_a_step_for_each_sample(tableau: ButcherTableau) -> None:
    method, t, h = ExplicitRungeKutta(tableau), torch.tensor([0.3, 0.5, 0.9]), torch.tensor([0.1, -0.2, 0.3])
    t, h = t.double(), h.double()
    together = method.step(dynamics, t, known_solution(t), h[:, None], None).y1
    alone = [method.step(dynamics, s, known_solution(s), float(k), None).y1 for s, k in zip(t, h, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))


@each_adaptive
def test_gradients_through_a_step_and_its_dense_output(tableau: ButcherTableau) -> None:
    method = ExplicitRungeKutta(tableau)

    def states(t: Tensor, y: Tensor, h: Tensor, theta: Tensor) -> Tensor:
        return method.interpolate(y, method.step(dynamics, t, y, h, None).dense, h, theta)

    inputs = [torch.tensor(0.3), torch.tensor([0.5, -0.2]), torch.tensor(0.2), torch.tensor([0.0, 0.35, 1.0])]
    assert torch.autograd.gradcheck(states, [x.double().requires_grad_() for x in inputs])
