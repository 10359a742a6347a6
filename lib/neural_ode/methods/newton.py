"""Newton's method for the equations of implicit Runge-Kutta steps.

The unknowns are the increments `W_i = h k_i` of some stages that depend on each other:

    W_i = h f(t_i, Y_i),    Y_i = x_i + Σ_j a_ij W_j.

With a Jacobian `J_i ≈ ∂f/∂y (t_i, Y_i)`, an iteration solves

    M ΔW = h f(t_i, Y_i) - W_i,    M = I - h (a_ij J_i).

Modified Newton computes `J` once, at the start of the step, for all stages and all iterations. It then converges
linearly. The ratio `Θ` of `|ΔY|` to that of the iteration before tells the error that is left, `|ΔY| Θ / (1 - Θ)`.
(Hairer & Wanner, *Solving Ordinary Differential Equations II*, section IV.8, cited as HW. There the unknowns are
`Z = A W`, but Newton's iterates do not depend on such a choice.)
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, NewtonError
from neural_ode.problem.dynamics import check_slope
from neural_ode.problem.state import Dynamics

__all__ = ["Newton", "VectorField", "flat", "unflat"]

PATIENCE = 4
"""With more than so many iterations to go, a new Jacobian is the shorter way."""

KAPPA = 0.01
"""How much of the tolerance of a step its equations may use up (κ in HW)."""


def flat(x: Tensor) -> Tensor:
    """The numbers of a state as a real vector, twice as long where the state is complex."""
    return torch.view_as_real(x.resolve_conj()).reshape(-1) if x.is_complex() else x.reshape(-1)


def unflat(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `flat`."""
    if like.is_complex():
        return torch.view_as_complex(x.reshape(*like.shape, 2))
    return x.reshape(like.shape)


class VectorField:
    """The dynamics on real vectors.

    Attributes:
        nfe: how often the dynamics were evaluated.
    """

    def __init__(self, f: Dynamics, like: Tensor):
        self.f, self.like = f, like
        self.nfe = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        slope = self.f(t, unflat(x, self.like))
        check_slope(slope, self.like)
        return flat(slope)

    def jacobian(self, t: Tensor, x: Tensor) -> Tensor:
        """`∂f/∂y`, shape (n, n), without a graph. Costs one evaluation and the backward passes from it.

        Dynamics outside of autograd, such as NumPy code, or operations with `out=`, are differenced, for `n + 1`
        evaluations.
        """
        t, x = t.detach(), x.detach()
        try:
            with torch.enable_grad():
                x = x.requires_grad_()
                slope = self(t, x)
        except RuntimeError as error:
            if "out=" not in str(error):
                raise
            with torch.no_grad():
                slope = self(t, x)
        if not slope.requires_grad:
            return self._differences(t, x.detach(), slope.detach())
        rows = torch.eye(len(x), dtype=x.dtype, device=x.device)
        try:
            (jacobian,) = torch.autograd.grad(
                slope, x, rows, is_grads_batched=True, allow_unused=True, retain_graph=True
            )
        except RuntimeError:  # an operation whose backward pass vmap does not know
            gradients = [torch.autograd.grad(slope, x, row, retain_graph=True, allow_unused=True) for row in rows]
            jacobian = None if gradients[0][0] is None else torch.stack([row for (row,) in gradients])
        return rows.new_zeros(rows.shape) if jacobian is None else jacobian

    def _differences(self, t: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        """Forward differences with the increments of RADAU5 (HW, section IV.8)."""
        increments = (torch.finfo(x.dtype).eps * x.abs().clamp(min=1e-5)).sqrt()
        columns = []
        with torch.no_grad():
            for shifted, increment in zip(x + torch.diag(increments), increments, strict=True):
                columns.append((self(t, shifted) - slope) / increment)
        return torch.stack(columns, dim=1)


class Newton:
    """Solves the equations of the stages of one step.

    Where the iteration converges slowly, it goes on with new Jacobians at the current iterate, one for each stage,
    as Newton's method proper does. Later stages of a diagonally implicit method start from the last one. Where even
    that diverges, a solve with error control gives up, and one without tries shorter corrections.
    """

    def __init__(
        self, field: VectorField, t: Tensor, y: Tensor, h: float, max_iters: int, tolerance: Tolerance | None
    ):
        """
        Args:
            field: the dynamics.
            t: the time at the start of the step.
            y: the state there, a real vector.
            h: the step.
            max_iters: the most iterations for one system.
            tolerance: of the error control. `None`: iterate until only rounding errors are left.
        """
        if y.dtype.itemsize < 4:
            raise InvalidArgumentError(
                f"implicit methods solve linear systems, for which {y.dtype} has no digits: use y0.float()"
            )
        self.field, self.t, self.y, self.h = field, t.detach(), y.detach(), h
        self.max_iters, self.tolerance = max_iters, tolerance
        self.eps = torch.finfo(y.dtype).eps
        self.jacobians: Tensor | None = None
        self.factors: dict[tuple[tuple[float, ...], ...], Callable[[Tensor], Tensor]] = {}
        if tolerance is not None:
            self.scale = tolerance.scale(unflat(self.y, field.like).abs())

    def solve(
        self,
        nodes: Sequence[Tensor],
        base: Tensor,
        a: Sequence[Sequence[float]],
        guess: Tensor,
        h: Tensor | float,
    ) -> Tensor:
        """Solve `W_i = h f(t_i, x_i + Σ_j a_ij W_j)`.

        Where gradients are wanted, the result has the first and second derivatives of the exact solution.

        Args:
            nodes: the times `t_i`, `r` tensors of shape ().
            base: the `x_i`, shape (r, n).
            a: the coefficients, `r` rows of `r` numbers.
            guess: a first approximation to `W`, shape (r, n), without a graph.
            h: the step, as it is to be differentiated.

        Raises:
            NewtonError: the iteration did not converge.
        """
        matrix = torch.tensor(a, dtype=base.dtype, device=base.device)
        # Evaluated with its graph, which costs little and shows whether gradients are wanted.
        slopes = self._slopes(nodes, base + matrix @ guess)
        inputs = [slopes, base, *(x for x in (*nodes, h) if isinstance(x, Tensor))]
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        with torch.no_grad():
            W = self._iterate(nodes, base.detach(), a, matrix, guess, slopes.detach())
        return self._attached(W, nodes, base, a, matrix, h) if differentiable else W

    def _slopes(self, nodes: Sequence[Tensor], Y: Tensor) -> Tensor:
        return torch.stack([self.field(t, x) for t, x in zip(nodes, Y, strict=True)])

    def _iterate(
        self,
        nodes: Sequence[Tensor],
        base: Tensor,
        a: Sequence[Sequence[float]],
        matrix: Tensor,
        W: Tensor,
        slopes: Tensor,
    ) -> Tensor:
        """Newton's method, with the natural monotonicity test and the damping of NLEQ.

        A correction is refused if the next one, from the same Jacobians, is not smaller. (Deuflhard 2004, *Newton
        Methods for Nonlinear Problems*, chapter 3.)
        """

        def correction() -> tuple[Tensor, float]:
            delta = self._solver(a, matrix)((self.h * slopes - W).reshape(-1)).reshape(W.shape)
            return delta, self._size(matrix @ delta)

        # The last point that was not refused, its slopes, the correction there, and its size.
        last: tuple[Tensor, Tensor, Tensor] | None = None
        before = 0.0
        exact = False  # whether the Jacobians are those of that point
        damping = 1.0
        for iteration in range(1, self.max_iters + 1):
            Y = base + matrix @ W
            wanted = self._wanted(Y)
            if iteration > 1:
                slopes = self._slopes(nodes, Y)
            delta, size = correction()
            if last is not None and size < before:
                rate = size / before
                if rate / (1 - rate) * size <= wanted:
                    return W + delta
                exact = rate**PATIENCE / (1 - rate) * size > wanted
                if exact:
                    self._linearise(nodes, Y)
                    delta, size = correction()
                damping = min(1.0, 2 * damping)
            elif last is not None:
                if exact and self._is_rounding(matrix @ delta, Y):
                    return W
                if exact and self.tolerance is not None:
                    break  # a shorter step is easier
                W, slopes, delta = last
                if exact:
                    damping /= 2
                    W = W + damping * delta
                    continue
                self._linearise(nodes, base + matrix @ W)
                delta, size = correction()
                exact = True
            if size == 0:
                return W
            if not math.isfinite(size):
                break
            last, before = (W, slopes, delta), size
            W = W + damping * delta
        raise NewtonError(self._complaint(iteration, size / wanted))

    def _size(self, change: Tensor) -> float:
        """The size of a change of the stages, over its tolerance where there is one."""
        if self.tolerance is None:
            return float(change.abs().amax())
        like, norm = self.field.like, self.tolerance.norm
        return max(abs(float(norm(unflat(row, like) / self.scale))) for row in change)

    def _wanted(self, Y: Tensor) -> float:
        """The size of a tolerated error of the stages `Y`."""
        return 10 * self.eps * self._largest(Y) if self.tolerance is None else KAPPA

    def _is_rounding(self, change: Tensor, Y: Tensor) -> bool:
        """Whether a change that does not shrink is as small as rounding errors of the dynamics make it."""
        smallest: float = self.eps ** (2 / 3) * self._largest(Y)
        return float(change.abs().amax()) <= smallest

    def _largest(self, Y: Tensor) -> float:
        """The largest entry of the state, at the start or in a stage."""
        largest = torch.maximum(Y.abs().amax(), self.y.abs().amax())
        return float(largest.clamp(min=torch.finfo(Y.dtype).tiny))

    def _linearise(self, nodes: Sequence[Tensor], Y: Tensor) -> None:
        self.jacobians = torch.stack([self.field.jacobian(t, x) for t, x in zip(nodes, Y, strict=True)])
        self.factors.clear()

    def _solver(self, a: Sequence[Sequence[float]], matrix: Tensor) -> Callable[[Tensor], Tensor]:
        """Solves linear systems with `M`; stages with the same coefficients share its factors."""
        if self.jacobians is None:
            self._linearise([self.t], self.y[None])
        assert self.jacobians is not None
        key = tuple(map(tuple, a))
        if key not in self.factors:
            self.factors[key] = _factorised(self.h, matrix, self.jacobians)
        return self.factors[key]

    def _attached(
        self,
        W: Tensor,
        nodes: Sequence[Tensor],
        base: Tensor,
        a: Sequence[Sequence[float]],
        matrix: Tensor,
        h: Tensor | float,
    ) -> Tensor:
        """The solution with its dependence on the parameters of the equations.

        With the exact `M` at the solution, held constant, a Newton correction `W - M^(-1) G(W, p)` of the equations
        `G(W, p) = 0` has the derivative `-M^(-1) ∂G/∂p` of the implicit function theorem, and a second correction
        the second derivatives. Only the derivatives are taken from them, so that a solve with gradients finds the
        same states as one without.
        """
        with torch.no_grad():
            Y = base + matrix @ W
            jacobians = torch.stack([self.field.jacobian(t, x) for t, x in zip(nodes, Y, strict=True)])
            solve = _factorised(self.h, matrix, jacobians)
        for _ in range(2):
            residual = h * self._slopes(nodes, base + matrix @ W) - W
            correction = solve(residual.reshape(-1)).reshape(W.shape)
            W = W + (correction - correction.detach())
        return W

    def _complaint(self, iterations: int, size: float) -> str:
        outcome = (
            f"the last one still changed the stages by {size:.1e} times the accuracy wanted"
            if math.isfinite(size)
            else "the iterates became NaN or infinite"
        )
        return (
            f"Newton's method did not converge in the step from t = {float(self.t)} with h = {self.h}: after "
            f"{iterations} iterations {outcome}; take a smaller step_size, allow more with max_iters (now "
            f"{self.max_iters}), or use float64 or an adaptive method, such as kvaerno5"
        )


def _factorised(h: float, a: Tensor, jacobians: Tensor) -> Callable[[Tensor], Tensor]:
    """Solves systems with `M = I - h (a_ij J_i)`; `jacobians` has shape (r, n, n), or (1, n, n) for equal ones."""
    r, n = len(a), jacobians.shape[-1]
    blocks = a[:, :, None, None] * jacobians[:, None]
    M = torch.eye(r * n, dtype=a.dtype, device=a.device) - h * blocks.transpose(1, 2).reshape(r * n, r * n)
    factors, pivots, _ = torch.linalg.lu_factor_ex(M)  # of a singular matrix: the iterates become infinite
    return lambda x: torch.linalg.lu_solve(factors, pivots, x[:, None])[:, 0]
