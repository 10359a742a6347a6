"""The coefficients against the order conditions, in exact arithmetic."""

from fractions import Fraction
from itertools import pairwise

import pytest

from neural_ode.tableaus import DOPRI5, EULER, MIDPOINT, RK4, ButcherTableau

TABLEAUS = [EULER, MIDPOINT, RK4, DOPRI5]

# The rooted trees of order 1 to 5 as nested tuples of subtrees; Hairer, Nørsett & Wanner I, table II.2.2.
LEAF: tuple = ()
TREES = {
    1: [LEAF],
    2: [(LEAF,)],
    3: [(LEAF, LEAF), ((LEAF,),)],
    4: [(LEAF, LEAF, LEAF), (LEAF, (LEAF,)), ((LEAF, LEAF),), (((LEAF,),),)],
    5: [
        (LEAF, LEAF, LEAF, LEAF),
        (LEAF, LEAF, (LEAF,)),
        (LEAF, (LEAF, LEAF)),
        (LEAF, ((LEAF,),)),
        ((LEAF,), (LEAF,)),
        ((LEAF, LEAF, LEAF),),
        ((LEAF, (LEAF,)),),
        (((LEAF, LEAF),),),
        ((((LEAF,),),),),
    ],
}


def size(tree: tuple) -> int:
    return 1 + sum(size(child) for child in tree)


def density(tree: tuple) -> int:
    product = size(tree)
    for child in tree:
        product *= density(child)
    return product


def stage_weights(tableau: ButcherTableau, tree: tuple) -> list[Fraction]:
    """Φ_i(tree) of each stage."""
    result = [Fraction(1)] * tableau.stages
    for child in tree:
        inner = stage_weights(tableau, child)
        for i, row in enumerate(tableau.a):
            result[i] *= sum((a * inner[j] for j, a in enumerate(row)), Fraction(0))
    return result


def quadrature(tableau: ButcherTableau, weights: tuple[Fraction, ...], tree: tuple) -> Fraction:
    return sum((w * phi for w, phi in zip(weights, stage_weights(tableau, tree), strict=True)), Fraction(0))


@pytest.mark.parametrize("tableau", TABLEAUS, ids=lambda tableau: tableau.name)
def test_nodes_are_row_sums(tableau: ButcherTableau) -> None:
    assert [sum(row, Fraction(0)) for row in tableau.a] == list(tableau.c)


@pytest.mark.parametrize("tableau", TABLEAUS, ids=lambda tableau: tableau.name)
def test_order_conditions(tableau: ButcherTableau) -> None:
    for order in range(1, tableau.order + 1):
        for tree in TREES[order]:
            assert quadrature(tableau, tableau.b, tree) == Fraction(1, density(tree)), (order, tree)


def test_the_order_is_not_higher_than_stated() -> None:
    for tableau in (EULER, MIDPOINT, RK4):
        next_order = TREES[tableau.order + 1]
        assert any(quadrature(tableau, tableau.b, tree) != Fraction(1, density(tree)) for tree in next_order)


def test_embedded_method_of_dopri5_has_order_four() -> None:
    assert DOPRI5.b_error is not None
    embedded = tuple(b - e for b, e in zip(DOPRI5.b, DOPRI5.b_error, strict=True))
    for order in range(1, 5):
        for tree in TREES[order]:
            assert quadrature(DOPRI5, embedded, tree) == Fraction(1, density(tree))
    assert any(quadrature(DOPRI5, embedded, tree) != Fraction(1, density(tree)) for tree in TREES[5])


def test_only_dopri5_is_first_same_as_last() -> None:
    assert [tableau.name for tableau in TABLEAUS if tableau.fsal] == ["dopri5"]


@pytest.mark.parametrize("theta", [Fraction(1, 7), Fraction(1, 2), Fraction(9, 10), Fraction(1)])
def test_dense_output_of_dopri5_has_order_four_everywhere(theta: Fraction) -> None:
    assert DOPRI5.dense is not None
    weights = tuple(sum((c * theta ** (p + 1) for p, c in enumerate(row)), Fraction(0)) for row in DOPRI5.dense)
    for order in range(1, 5):
        for tree in TREES[order]:
            assert quadrature(DOPRI5, weights, tree) == theta**order / density(tree)


def test_dense_output_of_dopri5_joins_smoothly() -> None:
    """b_i(1) = b_i, and the slope is the first stage at the start and the last stage at the end."""
    assert DOPRI5.dense is not None
    assert tuple(sum(row, Fraction(0)) for row in DOPRI5.dense) == DOPRI5.b
    assert [row[0] for row in DOPRI5.dense] == [1, 0, 0, 0, 0, 0, 0]
    slopes = [sum(((p + 1) * c for p, c in enumerate(row)), Fraction(0)) for row in DOPRI5.dense]
    assert slopes == [0, 0, 0, 0, 0, 0, 1]


def test_trees_are_complete() -> None:
    """1, 1, 2, 4, 9 rooted trees, all of the right size and different."""
    assert [len(set(trees)) for trees in TREES.values()] == [1, 1, 2, 4, 9]
    assert all(size(tree) == order for order, trees in TREES.items() for tree in trees)
    assert all(a < b for a, b in pairwise(TREES))
