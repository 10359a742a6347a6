"""Adams methods of variable order and step.

An Adams method replaces `f` in `y(t_n + h) = y_n + ∫ f dt` by the polynomial through the slopes at the last `k`
points and integrates that. Newton's form of the polynomial lets the points lie anywhere:

    f(t_n + s h) ≈ Σ_{j<k} q_j(s) φ*_j,    q_j(s) = Π_{i<j} (s + r_i) / (1 + r_i),    r_i = (t_n - t_{n-i}) / h,

where `φ*_j` is the divided difference `f[t_n, …, t_{n-j}]` scaled so that `q_j(1) = 1`: the term that the point
`t_{n-j}` adds to the extrapolation to `t_n + h`. With `g_j(θ) = ∫_0^θ q_j(s) ds` and `g_j = g_j(1)`,

    predictor, order k:      p = y_n + h Σ_{j<k} g_j φ*_j
    residual:                φ_k = f(t_n + h, p) - Σ_{j<k} φ*_j
    corrector, order k + 1:  y_{n+1} = p + h g_k φ_k
    error at order k:        h (g_k - g_{k-1}) φ_k

(Krogh 1974; Shampine & Gordon 1975, *Computer Solution of Ordinary Differential Equations*; Hairer, Nørsett &
Wanner I, sections III.5 and III.7).
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from neural_ode.control.controllers import IntegralController
from neural_ode.methods.base import Carry, Method, Next, Ratio, Step
from neural_ode.problem.state import Dynamics

__all__ = ["MAX_ORDER", "NewtonForm", "VariableOrderAdams", "newton_form"]

MAX_ORDER = 12
"""Of the predictor. From 13 on, errors of rounding and of stability eat what the order gains."""

Number: TypeAlias = Any
"""A float or a fraction."""


@dataclass(frozen=True)
class NewtonForm:
    """Newton's form of the polynomial through the last `k` slopes, relative to the next step.

    Attributes:
        terms: row `j` holds the weights of `f_n, …, f_{n-j}` in `φ*_j`; `k` rows.
        q: row `j` holds the coefficients of `1, s, …, s^j` in `q_j(s)`; `k + 1` rows. None is negative, so that
            sums of them do not cancel.
        g: the integrals `g_0, …, g_k`.
    """

    terms: list[list[Number]]
    q: list[list[Number]]
    g: list[Number]

    @cached_property
    def extrapolations(self) -> list[list[Number]]:
        """Entry `j` holds the weights of the slopes in `Σ_{i<j} φ*_i`, their value extrapolated over the step."""
        return self._sums([1] * len(self.terms))

    @cached_property
    def predictors(self) -> list[list[Number]]:
        """Entry `j` holds the weights of the slopes in `Σ_{i<j} g_i φ*_i`, the predictor of order `j`."""
        return self._sums(self.g)

    @cached_property
    def amplification(self) -> list[float]:
        """Entry `j`: by how much extrapolation from `j` slopes may enlarge their rounding errors."""
        return [sum(map(abs, weights)) for weights in self.extrapolations]

    def _sums(self, factors: list[Number]) -> list[list[Number]]:
        sums: list[list[Number]] = [[]]
        for factor, row in zip(factors, self.terms, strict=False):
            sums.append([total + factor * w for total, w in zip([*sums[-1], 0], row, strict=True)])
        return sums


def newton_form(steps: tuple[Number, ...]) -> NewtonForm:
    """The polynomial through slopes at the given distances, newest first, in units of the next step."""
    one = steps[0] / steps[0] if steps else 1.0  # of their type
    r = [0 * one, *accumulate(steps)]
    q: list[list[Number]] = [[one]]
    for r_j in r:
        q.append([(a + r_j * b) / (1 + r_j) for a, b in zip([0, *q[-1]], [*q[-1], 0], strict=True)])
    terms: list[list[Number]] = [[one]]
    for j in range(1, len(r)):
        row = [w * (1 + r[j - 1]) / (r[j] - r_i) for w, r_i in zip(terms[-1], r, strict=False)]
        terms.append([*row, -sum(row)])  # a constant has no divided differences
    return NewtonForm(terms, q, [sum(c / (p + 1) for p, c in enumerate(row)) for row in q])


_cached_newton_form = lru_cache(maxsize=1024)(newton_form)
"""Equal steps, and steps that double, meet the same few distances again and again."""


class History(NamedTuple):
    """What a step starts from.

    Attributes:
        slopes: at the last points, the newest first, shape (m, number of entries of the state).
        steps: distances between these points, m - 1 numbers.
        order: of the predictor.
        starting: whether each step still raises the order and doubles.
        failures: how many steps in a row were rejected.
        rows: which of the slopes that the last accepted step left these are; attempts that were rejected since
            may have dropped some.
        predicted: slope at the predicted end of the step just made, until the next is chosen; flat, without a
            gradient.
    """

    slopes: Tensor
    steps: tuple[float, ...]
    order: int
    starting: bool
    failures: int = 0
    rows: tuple[int, ...] = (0,)
    predicted: Tensor | None = None

    def form(self, h: float) -> NewtonForm:
        """For a step of length `h`."""
        return _cached_newton_form(tuple(step / h for step in self.steps[: self.order]))

    def usable(self, h: float) -> "History":
        """Without what would only carry rounding errors into a step of length `h`.

        That is, without points too near the newest, such as a step leaves that was cut short to end at a given
        time; and with a lower order after steps that have doubled many times, and lie close together seen from
        the end of this one.
        """
        near = 0
        for passed in accumulate(self.steps):
            near += abs(passed) < _NEAR * abs(h)
        history = self
        if near:
            slopes = torch.cat([self.slopes[:1], self.slopes[near + 1 :]])
            steps = (sum(self.steps[: near + 1]), *self.steps[near + 1 :]) if near < len(self.steps) else ()
            rows = (*self.rows[:1], *self.rows[near + 1 :])
            history = self._replace(slopes=slopes, steps=steps, order=min(self.order, len(slopes)), rows=rows)
        amplification = history.form(h).amplification
        order = history.order
        while amplification[order] > _MOST_AMPLIFIED:
            order -= 1
        return history if order == history.order else history._replace(order=order)


_NEAR = 0.25
"""Closer than this part of the next step, a point is too near. Steps that double do not come to it."""

_MOST_AMPLIFIED = 2.0**MAX_ORDER
"""What equal steps reach at the highest order."""


class VariableOrderAdams(Method):
    """Predictor-corrector pairs of order 1 to 12, the corrector one order higher (PECE with local extrapolation).

    A step costs two evaluations, whatever its order, and may have any length. The first has order 1; then the
    order rises and the step doubles until the error says no. From there on the order changes by one where the
    estimated errors of the neighbouring orders are smaller, and the step is kept, doubled, or shortened after a
    rejection: steps of equal length make smooth errors, which tell the orders apart (Shampine & Gordon 1975,
    chapter 7). For this the controller, an `IntegralController`, gets the error ratio that makes it do so.

    A step is doubled where the error is then expected to be at most half of what is tolerated. A `safety` of the
    controller other than 0.9 moves that in proportion to a shorter or longer step; so it does with the step after a
    rejection, which is shorter by a fifth at least. With an `ifactor` below 2 steps grow by that much instead; they
    shrink by `dfactor` at most.

    On a fixed grid nothing chooses the order, and it stays at 1.

    Attributes:
        controller: of the solve, see `controlled`.
    """

    own_steps = True
    name = "adams"
    order = 2  # of the first step
    adaptive = True
    has_dense_output = True

    def __init__(self, controller: IntegralController | None = None):
        self.controller = controller or IntegralController()

    def controlled(self, controller: IntegralController) -> "VariableOrderAdams":
        """The method with the safety and the limits of this controller in its own choice of step and order."""
        return VariableOrderAdams(controller)

    def begin(self, slope: Tensor) -> History:
        """A history of one slope: order 1, which rises quickly while nothing is rejected."""
        return History(slope.reshape(1, -1), (), order=1, starting=True)

    def step(self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Carry) -> Step:
        """Predict, evaluate, correct, evaluate: two evaluations a step; see `Method.step`."""
        assert carry is None or isinstance(carry, History)
        length = float(h.detach() if isinstance(h, Tensor) else h)
        history = (self.begin(f(t, y)) if carry is None else carry).usable(length)
        k, form = history.order, history.form(length)
        points = history.slopes[:k].t()
        weights = torch.tensor([form.predictors[k], form.extrapolations[k]], dtype=y.dtype, device=y.device)
        t1 = t + h
        predictor = torch.addmv(y.reshape(-1), points, weights[0], alpha=length)
        predicted = f(t1, predictor.view_as(y)).reshape(-1)
        residual = torch.addmv(predicted, points, weights[1], alpha=-1)
        y1 = torch.add(predictor, residual, alpha=length * form.g[k]).view_as(y)
        slope = f(t1, y1).reshape(1, -1)
        kept = min(k + 1, len(history.slopes), MAX_ORDER - 1)
        return Step(
            y1=y1,
            error=_error(residual, form, k, length).view_as(y),
            dense=(history.slopes[0].view_as(y), history.slopes[:k], residual, form),
            carry=History(
                slopes=torch.cat([slope, history.slopes[:kept]]),
                steps=(length, *history.steps)[:kept],
                order=k,
                starting=history.starting,
                rows=tuple(range(kept + 1)),
                predicted=predicted.detach(),
            ),
            nfe=2 + (carry is None),
        )

    def interpolate(self, y: Tensor, dense: tuple[Any, ...], h: Tensor | float, theta: Tensor) -> Tensor:
        """`y + h (Σ_{j<k} g_j(θ) φ*_j + g_k(θ) φ_k)`: the integral of the polynomial that the corrector uses."""
        _, slopes, residual, form = dense
        k = len(slopes)
        powers = theta[:, None].double() ** torch.arange(1, k + 2, device=theta.device)
        integrals = powers.new_tensor(
            [_padded([c / (p + 1) for p, c in enumerate(q)], k + 1) for q in form.q[: k + 1]]
        )
        terms = powers.new_tensor([_padded(row, k) for row in form.terms[:k]])
        g = h * (powers @ integrals.T)
        increments: Tensor = (g[:, :k] @ terms).to(y.dtype) @ slopes + g[:, k:].to(y.dtype) * residual
        return y + increments.view(-1, *y.shape)

    def after(self, step: Step, carry: Carry, err: float, ratio: Ratio) -> Next:
        """Choose the order for the next step, or for the repetition, by the errors of the orders beside it."""
        assert isinstance(carry, History)
        assert isinstance(step.carry, History)
        made = step.carry
        h = made.steps[0]
        carry = carry.usable(h)
        k, form = carry.order, carry.form(h)

        def size(order: int, slope: Tensor) -> float:
            """The error ratio if the step had been made at this order."""
            weights = torch.tensor(form.extrapolations[order], dtype=slope.dtype, device=slope.device)
            with torch.no_grad():
                residual = torch.addmv(slope, carry.slopes[:order].t(), weights, alpha=-1)
            return ratio(_error(residual, form, order, h).view_as(step.y1))

        assert made.predicted is not None
        if not err <= 1 and (carry.failures == _PATIENCE or not math.isfinite(err)):
            # The past says nothing about what comes: there is a discontinuity, or f is not defined.
            restart = History(carry.slopes[:1], (), order=1, starting=False, failures=carry.failures + 1)
            return Next(restart, self._shrinks(size(1, made.predicted), 2), 2)
        below = size(k - 1, made.predicted) if k > 1 else math.inf
        lower = below <= (err if k > 2 else err / 2) and (k == 2 or size(k - 2, made.predicted) <= err)
        if not err <= 1:
            if lower:
                k, err = k - 1, below
            retry = carry._replace(order=k, starting=False, failures=carry.failures + 1)
            return Next(retry, self._shrinks(err, k + 1), k + 1)
        if made.starting and not lower and k < MAX_ORDER:
            raised = min(k + 1, len(made.slopes))
            return Next(made._replace(order=raised, predicted=None), self._grows(k + 1), k + 1)
        if not lower and k < MAX_ORDER and len(carry.steps) >= k and set(carry.steps[:k]) == {h}:
            above = size(k + 1, made.slopes[0])
            lower = below <= min(err, above)
            if not lower and above < (err if k > 1 else err / 2):
                k, err = k + 1, above
        if lower:
            k, err = k - 1, below
        safety, growth = self.controller.safety / IntegralController.safety, min(2.0, self.controller.ifactor)
        grows = err * growth ** (k + 1) <= 0.5 * safety ** (k + 1)
        settled = made._replace(order=k, starting=False, predicted=None)
        return Next(settled, self._grows(k + 1) if grows else 1.0, k + 1)

    def _grows(self, order: int) -> float:
        """The error ratio after which the controller doubles the step, or makes it as much longer as it may."""
        return float((self.controller.safety / 2) ** order)

    def _shrinks(self, err: float, order: int) -> float:
        """The error ratio, above 1, after which it makes the step shorter by at least a fifth."""
        if math.isnan(err):
            return err
        return max(err, (self.controller.safety / 0.8) ** order, math.nextafter(1.0, 2.0))

    def continued(self, carry: Carry, frame: Carry) -> History:
        """The history as rejected attempts have left it: fewer rows, another order."""
        assert isinstance(carry, History)
        assert isinstance(frame, History)
        rows = frame.rows
        slopes = carry.slopes if rows == tuple(range(len(carry.slopes))) else carry.slopes[list(rows)]
        return frame._replace(slopes=slopes)


_PATIENCE = 2
"""So many times in a row a step is rejected before the next rejection starts again at order 1."""


def _error(residual: Tensor, form: NewtonForm, k: int, h: float) -> Tensor:
    """The local error at order `k`."""
    factor: float = h * (form.g[k] - form.g[k - 1])
    return residual.detach() * factor


def _padded(row: list[float], length: int) -> list[float]:
    return row + [0.0] * (length - len(row))
