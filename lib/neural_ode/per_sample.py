"""The loop with error control in which every row of a batch has its own time, step and acceptance.

Lienen & Günnemann (2022), *torchode*: a batch that shares its steps takes the shortest that any row needs, and an
error norm over the batch lets single rows miss the tolerance.
"""

import torch
from torch import Tensor

from neural_ode.adaptive import check_start
from neural_ode.errors import MaxStepsError, NonFiniteError, SolverError, StepSizeUnderflowError
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.scheme import Scheme, Trajectory
from neural_ode.solution import SampleStatistics, Statistics
from neural_ode.state import Dynamics, rms_norm
from neural_ode.step_size import Tolerance

__all__ = ["per_sample"]

_EXPLODED = 100.0
"""An error ratio that says: this attempt left all that is reasonable. (It cannot exceed about 1 / rtol.)"""


def per_sample(f: Dynamics, y0: Tensor, t: Tensor, scheme: Scheme, stats: Statistics) -> Trajectory:
    """Solve every row of `y0` with steps of its own.

    Args:
        f: the dynamics; gets times of shape (batch,).
        y0: the initial states, shape (batch, *state).
        t: output times, float64, shape (n,), or (batch, n) with times for each row.
        scheme: how to solve, with an explicit Runge-Kutta method.
        stats: counters to add to.

    Returns:
        The states, shape (n, batch, *state).
    """
    solve = _PerSample(f, y0, t, scheme, stats)
    try:
        return Trajectory(t, solve.run(y0))
    except SolverError as error:
        raise error.at(solve.now.min().item(), (t, solve.outputs(float("nan")))) from None


class _PerSample:
    """One solve: where each row is, and what has been found."""

    def __init__(self, f: Dynamics, y0: Tensor, t: Tensor, scheme: Scheme, stats: Statistics):
        assert isinstance(scheme.method, ExplicitRungeKutta)
        self.f, self.scheme, self.stats, self.method = f, scheme, stats, scheme.method
        self.t = t.to(y0.device).expand(len(y0), t.shape[-1])
        self.moving = t.requires_grad and torch.is_grad_enabled()
        self.times = self.t.detach()
        self.now = self.times[:, 0]
        self.direction = 1.0 if self.times.shape[1] == 1 or bool((self.times[:, 1] > self.now).all()) else -1.0
        self.ahead = self.times * self.direction
        self.dtype = y0.abs().dtype
        self.column = (len(y0), *[1] * (y0.dim() - 1))
        self.shape = y0.shape
        first = torch.arange(len(y0), device=y0.device)
        self.found: list[tuple[Tensor, Tensor]] = [(first, y0)]
        zeros = torch.zeros(len(y0), dtype=torch.int64, device=y0.device)
        self.counts = SampleStatistics(zeros, zeros.clone(), zeros.clone())
        stats.per_sample = self.counts

    def run(self, y: Tensor) -> Tensor:
        scheme, stats, counts, method = self.scheme, self.stats, self.counts, self.method
        end = self.times[:, -1]
        if len(self.times) == 0 or self.times.shape[1] == 1:
            return self.outputs()
        direction = self.direction
        carry: Tensor | None = self.f(self._time(), y)
        assert carry is not None
        check_start(carry, y, self.now[0].item())
        stats.nfe += 1
        counts.nfe.add_(1)
        h = self._first_steps(y, carry, end)
        previous: list[Tensor] = []
        steps = 0
        while True:
            active = self.now != end
            if not bool(active.any()):
                return self.outputs()
            if steps == scheme.max_steps:
                row = int(active.nonzero()[0])
                raise MaxStepsError(
                    f"{steps} steps were not enough for row {row} of the batch: reached "
                    f"t = {self.now[row].item()}; allow more with max_steps, loosen rtol and "
                    "atol, or use a method for stiff problems"
                )
            steps += 1
            h = direction * h.abs().clamp(scheme.min_step, scheme.max_step)
            reaches = (self.now + h * (1.01 if scheme.max_step == float("inf") else 1.0) - end) * direction >= 0
            h = torch.where(reaches, end - self.now, h)  # zero for rows that are done
            after = torch.where(reaches, end, self.now + h)
            if bool((active & ~((after - self.now).abs() > 0)).any()):
                self._give_up(active & ~((after - self.now).abs() > 0), h, previous)
            step = method.step(self.f, self._time(), y, h.to(self.dtype).reshape(self.column), carry)
            stats.nfe += step.nfe
            counts.nfe.add_(active, alpha=step.nfe)
            assert step.error is not None
            with torch.no_grad():
                scale = scheme.tolerance.scale(torch.maximum(y.abs(), step.y1.abs()))
                err = _row_norms(step.error / scale, scheme.tolerance).double()
                err = torch.where(h.abs() <= scheme.min_step, err.clamp(max=1.0), err)
                factor = scheme.controller.factors(err, method.order, previous)
                passed = err <= 1
            if not bool((err < _EXPLODED).all()):
                # What is not selected below gets a gradient of zero, and zero times infinity is NaN: repeat the
                # step, shorter for the rows that overflow or are about to.
                bad = ~(err < _EXPLODED)
                counts.rejected.add_(active & bad)
                h = torch.where(bad, h * scheme.controller.dfactor, h)
                previous = [torch.where(bad, torch.inf, 1.0), *previous][:2]
                del step
                continue
            accepted = passed & active
            counts.accepted.add_(accepted)
            counts.rejected.add_(active & ~accepted)
            self._collect(y, step.dense, h, after, accepted)
            select = accepted.reshape(self.column)
            if step.carry is not None:
                carry = torch.where(select, step.carry, step.dense[0])
            y = torch.where(select, step.y1, y)
            self.now = torch.where(accepted, after, self.now)
            if step.carry is None:
                carry = None
            h = h * factor
            previous = [torch.where(passed, err, torch.inf), *previous][:2]
            del step

    def _time(self) -> Tensor:
        """The times as the dynamics get them: shape (batch,), real dtype of the state."""
        if self.moving:
            return (self.t[:, 0] + (self.now - self.times[:, 0])).to(self.dtype)
        return self.now.to(self.dtype)

    def _first_steps(self, y: Tensor, slope: Tensor, end: Tensor) -> Tensor:
        """As `initial_step`, for every row."""
        span = (end - self.now).abs()
        if self.scheme.first_step is not None:
            return self.direction * span.clamp(max=self.scheme.first_step)
        tolerance, order, direction = self.scheme.tolerance, self.method.order, self.direction
        with torch.no_grad():
            scale = tolerance.scale(y.abs())
            size_y = _row_norms(y / scale, tolerance).double()
            size_f = _row_norms(slope / scale, tolerance).double()
            comparable = (size_y >= 1e-5) & (size_f >= 1e-5) & size_y.isfinite() & size_f.isfinite()
            h = torch.where(comparable, 0.01 * size_y / size_f, 1e-6).minimum(span)
            moved = y + slope * (direction * h).to(self.dtype).reshape(self.column)
            other = self.f((self.now + direction * h).to(self.dtype), moved)
            self.stats.nfe += 1
            self.counts.nfe.add_(1)
            curvature = _row_norms((other - slope) / scale, tolerance).double() / h
            largest = torch.maximum(size_f, curvature)
            refined = torch.where(largest <= 1e-15, (1e-3 * h).clamp(min=1e-6), (0.01 / largest) ** (1 / order))
            return direction * torch.where(largest.isfinite(), (100 * h).minimum(refined), h).minimum(span)

    def _collect(self, y: Tensor, dense: tuple[Tensor, ...], h: Tensor, after: Tensor, accepted: Tensor) -> None:
        """Find the states at the output times that the accepted steps pass over."""
        times, now = self.times, self.now * self.direction
        passed = (self.ahead > now[:, None]) & (self.ahead <= (after * self.direction)[:, None]) & accepted[:, None]
        rows, columns = passed.nonzero(as_tuple=True)
        if not len(rows):
            return
        if self.moving:
            start = self.t[rows, 0] + (self.now - times[:, 0])[rows]
            theta = (self.t[rows, columns] - start) / h[rows]
        else:
            theta = (times[rows, columns] - self.now[rows]) / h[rows]
        states = self.method.interpolate_rows(
            y[rows], tuple(k[rows] for k in dense), h[rows].to(self.dtype), theta.to(self.dtype)
        )
        self.found.append((columns * len(y) + rows, states))

    def outputs(self, missing: float = 0.0) -> Tensor:
        """The states found so far, shape (n, batch, *state)."""
        index = torch.cat([index for index, _ in self.found])
        states = torch.cat([states for _, states in self.found])
        n, batch = self.t.shape[1], len(self.t)
        empty = states.new_full((n * batch, *self.shape[1:]), missing)
        return empty.index_put((index,), states).reshape(n, *self.shape)

    def _give_up(self, rows: Tensor, h: Tensor, previous: list[Tensor]) -> None:
        row = int(rows.nonzero()[0])
        now = self.now[row].item()
        if previous and bool(previous[0][row].isinf()) and not bool(h[row].isfinite()):
            raise NonFiniteError(f"f(t, y) is NaN or infinite in row {row} of the batch just after t = {now}")
        raise StepSizeUnderflowError(
            f"at t = {now} the error control asks for a step of {h[row].item():.1e} in row {row} of the batch, too "
            "small to change t: is the solution finite there? Loosen rtol and atol, use float64, or a method for "
            "stiff problems"
        )


def _row_norms(x: Tensor, tolerance: Tolerance) -> Tensor:
    """The norm of every row, shape (batch,)."""
    if tolerance.norm is rms_norm:
        flat = x.flatten(1) if x.dim() > 1 else x[:, None]
        size: Tensor = torch.linalg.vector_norm(flat, dim=1)
        return size / max(flat.shape[1], 1) ** 0.5
    norms: Tensor = torch.func.vmap(tolerance.norm)(x)
    return norms.abs()
