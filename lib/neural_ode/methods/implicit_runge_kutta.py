"""One step of any implicit Runge-Kutta method, from its tableau.

The stages fall into blocks that are solved one after the other: a fully implicit method has one block of all its
stages, a diagonally implicit method one for each stage. For a state of `n` numbers, a block of `r` stages is a
system of `r n` equations, solved by Newton's method with dense matrices: meant for up to some hundred numbers.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, NewtonError
from neural_ode.methods.base import Carry, Method, Step
from neural_ode.methods.newton import Newton, VectorField, flat, unflat
from neural_ode.methods.tableaus.implicit import ImplicitTableau
from neural_ode.problem.state import Dynamics

__all__ = ["ImplicitRungeKutta"]


class ImplicitRungeKutta(Method):
    """Steps of the method that a tableau describes.

    A method with an error estimate iterates until the error of the stages is a hundredth of the tolerance it is
    bound to. It reports a step whose equations it cannot solve with an infinite error, so that error control tries
    a shorter one. A method without has nothing to compare errors with: it iterates until only rounding errors are
    left, whatever the tolerance, and raises `NewtonError` if that fails.

    `nfe` counts every evaluation of the dynamics, also those that a Jacobian starts from (see
    `VectorField.jacobian`). With gradients, each implicit stage costs one Jacobian and two evaluations more.

    Stiffly accurate methods end with the slope `f(t + h, y_1)`, taken from the equations: to evaluate it would
    multiply the errors of `y_1` by the stiffness. It is the first stage of the next step where that is explicit,
    and otherwise the first guess.

    Attributes:
        max_iters: the most iterations for one block of stages.
    """

    options = frozenset({"max_iters"})

    def __init__(self, tableau: ImplicitTableau, max_iters: int = 30, tolerance: Tolerance | None = None):
        """
        Args:
            tableau: the coefficients.
            max_iters: the most iterations for one block of stages.
            tolerance: says where iterations stop, see `for_tolerance`.
        """
        if isinstance(max_iters, bool) or not isinstance(max_iters, int) or max_iters < 1:
            raise InvalidArgumentError(f"max_iters must be a whole number of at least 1, got {max_iters!r}")
        self.tableau = tableau
        self.max_iters = max_iters
        self.name = tableau.name
        self.order = tableau.order
        self.adaptive = tableau.b_error is not None
        self.has_dense_output = True
        self._tolerance = tolerance
        self._blocks = _blocks(tableau)
        self._c = _floats(tableau.c)
        self._b = _floats(tableau.b)
        self._b_error = None if tableau.b_error is None else _floats(tableau.b_error)
        self._dense = [_floats(row) for row in tableau.dense]

    def for_tolerance(self, tolerance: Tolerance) -> "ImplicitRungeKutta":
        """The method with Newton iterations as exact as this tolerance asks for; on a grid, to rounding."""
        return ImplicitRungeKutta(self.tableau, self.max_iters, tolerance) if self.adaptive else self

    def configured(self, **options: Any) -> "ImplicitRungeKutta":
        """The method with other `max_iters`.

        Raises:
            InvalidArgumentError: it has no such option.
        """
        for name in options:
            if name not in self.options:
                raise InvalidArgumentError(f"{self.name} has no option {name}; it has max_iters")
        return ImplicitRungeKutta(self.tableau, options.get("max_iters", self.max_iters), self._tolerance)

    def step(self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Carry) -> Step:
        """Solve for the stages by Newton's method; see `Method.step`.

        Where the iteration fails, a method with error control returns an infinite error, so that the step is tried
        again shorter.

        Raises:
            NewtonError: it fails on a grid.
        """
        assert carry is None or isinstance(carry, Tensor)
        field = VectorField(f, y)
        try:
            W = self._increments(field, t, flat(y), h, None if carry is None else flat(carry))
        except NewtonError:
            if not self.adaptive:
                raise
            return Step(y, torch.full_like(y, math.inf), (), None, field.nfe)
        slopes = tuple(unflat(row, y) for row in W / h)
        return Step(
            y1=y + unflat(W.new_tensor(self._b) @ W, y),
            error=None if self._b_error is None else unflat(W.new_tensor(self._b_error) @ W, y),
            dense=slopes,
            carry=slopes[-1] if self.tableau.stiffly_accurate else None,
            nfe=field.nfe,
        )

    def _increments(
        self, field: VectorField, t: Tensor, y: Tensor, h: Tensor | float, slope: Tensor | None
    ) -> Tensor:
        """`h k_i`, a row for each stage. The slope is that at the start, `None` if unknown."""
        newton = Newton(field, t, y, h.item() if isinstance(h, Tensor) else h, self.max_iters, self._tolerance)
        nodes = (t + torch.tensor(self._c, dtype=t.dtype, device=t.device) * h).unbind()
        W = y.new_zeros(0, len(y))
        for block in self._blocks:
            if block.explicit:
                new = (h * (field(t, y) if slope is None else slope))[None]
            else:
                base = y + W.new_tensor(block.before) @ W
                with torch.no_grad():
                    if block.first:
                        guess = W.new_tensor(block.guess) @ W
                    else:
                        guess = (torch.zeros_like(y) if slope is None else h * slope).expand(len(block.a), -1)
                new = newton.solve(nodes[block.first : block.last], base, block.a, guess, h)
            W = torch.cat([W, new])
        return W

    def interpolate(self, y: Tensor, dense: tuple[Any, ...], h: Tensor | float, theta: Tensor) -> Tensor:
        """`y + h Σ_i b_i(θ) k_i`."""
        coefficients = torch.tensor(self._dense, dtype=theta.dtype, device=theta.device)
        powers = theta[:, None] ** torch.arange(1, coefficients.shape[1] + 1, device=theta.device)
        weights = (h * (powers @ coefficients.T)).to(y.dtype)
        increments: Tensor = torch.tensordot(weights, torch.stack(dense), dims=1)
        return y + increments


class _Block(NamedTuple):
    """Stages that depend on each other.

    Attributes:
        first, last: the stages are `first … last - 1`.
        a: their coefficients for each other.
        before: those for the stages before.
        guess: weights of the slopes before in the first approximation to each slope.
        explicit: whether the block is the slope at the start of the step.
    """

    first: int
    last: int
    a: list[list[float]]
    before: list[list[float]]
    guess: list[list[float]]
    explicit: bool


def _blocks(tableau: ImplicitTableau) -> list[_Block]:
    blocks = []
    first = 0
    while first < tableau.stages:
        last = first + 1
        while any(any(row[last:]) for row in tableau.a[first:last]):
            last += 1
        rows = tableau.a[first:last]
        blocks.append(
            _Block(
                first,
                last,
                a=[_floats(row[first:last]) for row in rows],
                before=[_floats(row[:first]) for row in rows],
                guess=[_extrapolation(_floats(tableau.c[:first]), float(c)) for c in tableau.c[first:last]],
                explicit=first == 0 and not any(tableau.a[0]),
            )
        )
        first = last
    return blocks


def _extrapolation(nodes: list[float], node: float) -> list[float]:
    """Weights of the linear extrapolation to `node` from the two nearest nodes, the latest where some are equal.

    Higher orders would multiply what is left of stiff components in the stages.
    """
    weights = [0.0] * len(nodes)
    latest = {c: i for i, c in enumerate(nodes)}
    nearest = sorted(latest, key=lambda c: abs(c - node))[:2]
    for c in nearest:
        others = [other for other in nearest if other != c]
        weights[latest[c]] = math.prod((node - other) / (c - other) for other in others)
    return weights


def _floats(row: Sequence[Any]) -> list[float]:
    return [float(x) for x in row]
