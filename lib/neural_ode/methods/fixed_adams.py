"""Adams methods on a given grid: Adams-Bashforth, and Adams-Bashforth-Moulton with a corrector that is iterated.

On a uniform grid they make the same numbers as `explicit_adams` and `implicit_adams` of torchdiffeq: steps of the
3/8 rule of Kutta as long as fewer than three slopes are known, then multistep formulas with as many slopes as are
known, at most `max_order - 1`. On other grids the weights follow the distances of the points (Hairer, Nørsett &
Wanner I, section III.5), so that the order stays; with weights for equal steps, as in torchdiffeq, it would not.
"""

import copy
import warnings
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, NeuralODEWarning
from neural_ode.methods.adams import MAX_ORDER, newton_form
from neural_ode.methods.base import Carry, Method, Step
from neural_ode.methods.runge_kutta import ExplicitRungeKutta
from neural_ode.methods.tableaus.explicit import RK4
from neural_ode.problem.state import Dynamics

__all__ = ["AdamsBashforth", "AdamsBashforthMoulton", "adams_weights"]

_STARTER = ExplicitRungeKutta(RK4)
_FEWEST_SLOPES = 3


class GridHistory(NamedTuple):
    """What a step starts from.

    Attributes:
        slopes: at the points before the last, the newest first, shape (m, number of entries of the state).
        steps: from each of these points to the next, shape (m,), float64 on the CPU.
    """

    slopes: Tensor
    steps: Tensor


class AdamsBashforth(Method):
    """The explicit method. A step costs one evaluation.

    The higher the order, the shorter the steps for which it is stable: with the default, a step of 0.02 is too long
    for a pendulum of frequency 1.

    Attributes:
        max_order: one more than the highest order that is used, as in torchdiffeq, where it is the order of the
            corrector in `AdamsBashforthMoulton`. Below 4 nothing but the starting method is left.
    """

    name = "explicit_adams"
    options = frozenset({"max_order"})
    adaptive = False
    has_dense_output = False

    def __init__(self, max_order: int = MAX_ORDER):
        if not isinstance(max_order, int) or not 1 <= max_order <= MAX_ORDER:
            raise InvalidArgumentError(
                f"max_order of {self.name} must be an integer from 1 to {MAX_ORDER}, got {max_order!r}"
            )
        self.max_order = max_order
        if max_order <= _FEWEST_SLOPES:
            message = f"{self.name} with max_order={max_order} does the same as rk4: use rk4, or 4 or more"
            warnings.warn(message, NeuralODEWarning, stacklevel=2)
        # The first multistep formula, used once, has order 3: an error of h⁴, whatever comes later.
        self.order = 3 if max_order == _FEWEST_SLOPES + 1 else 4

    def configured(self, **options: Any) -> "AdamsBashforth":
        """The method with another `max_order` (or, where it iterates, `max_iters`)."""
        return type(self)(**{name: getattr(self, name) for name in self.options} | options)

    def begin(self, slope: Tensor) -> None:
        """Nothing: the first step evaluates its slope itself, as torchdiffeq does."""
        return None

    def step(self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Carry) -> Step:
        """One evaluation and those of the iteration; a step of Kutta's 3/8 rule while too few slopes are known. See
        `Method.step`."""
        assert carry is None or isinstance(carry, GridHistory)
        slope = f(t, y)
        slopes = slope.reshape(1, -1)
        length = torch.as_tensor(h, dtype=torch.float64, device="cpu").reshape(1)
        steps = length[:0]
        if carry is not None:
            slopes = torch.cat([slopes, carry.slopes])[: max(self.max_order - 1, 1)]
            steps = carry.steps[: len(slopes) - 1]
        converged = True
        if len(slopes) < _FEWEST_SLOPES:
            started = _STARTER.step(f, t, y, h, slope)
            y1, nfe = started.y1, 1 + started.nfe
        else:
            increment, iterations, converged = self._increment(f, t, y, h, slopes, steps)
            y1, nfe = y + increment, 1 + iterations
        if not converged:  # a lower order may do better
            slopes, steps = slopes[:-1], steps[:-1]
        return Step(y1, None, (slope,), GridHistory(slopes, torch.cat([length, steps])), nfe, converged)

    def _increment(
        self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, slopes: Tensor, steps: Tensor
    ) -> tuple[Tensor, int, bool]:
        """What to add to `y`, the evaluations that it cost, and whether the iteration converged."""
        return _weighted_sum(adams_weights(steps, h, implicit=False), slopes, h).view_as(y), 0, True

    def interpolate(self, y: Tensor, dense: tuple[Any, ...], h: Tensor | float, theta: Tensor) -> Tensor:
        """Not possible: the loop over a grid interpolates between its points."""
        raise ValueError(f"{self.name} has no continuous extension")


class AdamsBashforthMoulton(AdamsBashforth):
    """The implicit method, solved by fixed-point iteration that starts from the explicit one.

    The iteration ends when the increment changes by less than `atol + rtol · |increment|` in every entry. If that
    does not happen, the step is taken all the same, and the next one may use one slope less; the solve warns of it.

    Attributes:
        max_order: the highest order that is used. Below 4 nothing but the starting method is left.
        max_iters: most evaluations of the dynamics for the iteration.
    """

    name = "implicit_adams"
    options = frozenset({"max_order", "max_iters"})

    def __init__(self, max_order: int = MAX_ORDER, max_iters: int = 4):
        super().__init__(max_order)
        if not isinstance(max_iters, int) or max_iters < 1:
            raise InvalidArgumentError(f"max_iters of {self.name} must be an integer, 1 or more, got {max_iters!r}")
        self.max_iters = max_iters
        self.order = 5 if max_order > _FEWEST_SLOPES + 1 else 4
        self._tolerance = Tolerance(rtol=1e-7, atol=1e-9, norm=_largest)

    def for_tolerance(self, tolerance: Tolerance) -> "AdamsBashforthMoulton":
        """The method with an iteration that ends within this tolerance, in every entry."""
        bound = copy.copy(self)
        bound._tolerance = Tolerance(tolerance.rtol, tolerance.atol, _largest)
        return bound

    def _increment(
        self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, slopes: Tensor, steps: Tensor
    ) -> tuple[Tensor, int, bool]:
        increment, *_ = super()._increment(f, t, y, h, slopes, steps)
        weights = adams_weights(steps, h, implicit=True)
        known = _weighted_sum(weights[1:], slopes, h).view_as(y)
        implicit = weights[0].to(h) if isinstance(h, Tensor) else weights[0].item()
        t1 = t + h
        for iteration in range(1, self.max_iters + 1):
            before = increment
            increment = known + f(t1, y + before) * (h * implicit)
            if self._tolerance.ratio(increment - before, before, increment) < 1:
                return increment, iteration, True
        return increment, self.max_iters, False


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax() if x.numel() else x.abs().sum()


def _weighted_sum(weights: Tensor, slopes: Tensor, h: Tensor | float) -> Tensor:
    """`h Σ w_i f_i`, flat."""
    return torch.mv(slopes.t(), weights.to(slopes.device, slopes.dtype)) * h


def adams_weights(steps: Tensor, h: Tensor | float, implicit: bool) -> Tensor:
    """Weights of the slopes in the Adams formula for a step `h`, exact fractions where all steps are equal.

    Where times require gradients, the weights do too: moving one point moves the weights of all.

    Args:
        steps: lengths of the `k - 1` steps before, the newest first.
        h: length of the step.
        implicit: for the slope at the end of the step as well, which comes first (Adams-Moulton).

    Returns:
        float64, shape (k,), or (k + 1,) with that of the end.
    """
    length = float(h.detach() if isinstance(h, Tensor) else h)
    ratios: tuple[float, ...] = tuple(step / length for step in steps.tolist())
    equal = all(abs(ratio - 1) < _ROUNDING for ratio in ratios)
    exact = (Fraction(1),) * len(ratios)  # until the end
    known = _adams(exact if equal else ratios)[implicit]
    weights = torch.tensor(known, dtype=torch.float64)
    if not (isinstance(h, Tensor) and h.requires_grad):
        return weights
    # Where the slopes are, in units of the next step.
    nodes = torch.cat([steps.new_tensor([1.0, 0.0] if implicit else [0.0]), -torch.cumsum(steps, 0) / h.to(steps)])
    moving: Tensor = _Moving.apply(nodes, weights)
    return moving


_ROUNDING = 1e-9
"""Steps whose lengths differ by less than this part are equal: the difference of two times is no more exact."""


@lru_cache(maxsize=1024)
def _adams(ratios: tuple[float | Fraction, ...]) -> tuple[list[float], list[float]]:
    """Of the explicit formula and of the implicit one."""
    form = newton_form(ratios)
    k = len(ratios) + 1
    predictor, extrapolation, g = form.predictors[k], form.extrapolations[k], form.g[k]
    # The corrector adds g_k φ_k, and φ_k is the new slope less the extrapolated one.
    corrector = [g, *(b - g * e for b, e in zip(predictor, extrapolation, strict=True))]
    return [float(w) for w in predictor], [float(w) for w in corrector]


class _Moving(torch.autograd.Function):
    """Weights `w_i = ∫_0^1 L_i(s) ds` that are known, with their derivatives in closed form.

    Lagrange's polynomials have `L_i(x_m) = δ_im` wherever the nodes `x` are. Differentiated by `x_j`, that says of
    `∂L_i/∂x_j`, which has the same degree, that it is `-L_i'(x_j)` at `x_j` and 0 at the other nodes. So it is
    `-L_i'(x_j) L_j`, and

        ∂w_i/∂x_j = -L_i'(x_j) w_j.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(nodes: Tensor, weights: Tensor) -> Tensor:
        return weights.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        nodes, weights = ctx.saved_tensors
        return -weights * (_derivatives(nodes) @ grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        nodes, weights = ctx.saved_tensors
        moved: Tensor = -(weights * tangent) @ _derivatives(nodes)
        return moved


def _derivatives(x: Tensor) -> Tensor:
    """Entry `j, i` is `L_i'(x_j)`, of Lagrange's polynomials (Berrut & Trefethen 2004, section 9.3)."""
    one = torch.eye(len(x), dtype=x.dtype)
    distances = x[:, None] - x + one
    products = distances.prod(1)
    inner = products[:, None] / (products * distances) * (1 - one)
    return inner - torch.diag(inner.sum(1))
