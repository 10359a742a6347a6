"""The backward solve of the adjoint method, from the last observation to the first, as one graph."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neural_ode.compiled.compiler import CannotCompile, call
from neural_ode.compiled.dynamics import (
    LiftedDynamics,
    check_no_hidden_dependence,
    compiling,
    with_parameters,
)
from neural_ode.compiled.loop import PATIENCE, control_of, run_through, tolerance_of
from neural_ode.compiled.solve import check
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.problem.augmented import AdjointEquation
from neural_ode.problem.state import Dynamics
from neural_ode.solution import Statistics
from neural_ode.stepping.settings import SolverSettings

__all__ = ["compiled_adjoint"]

_vjp: Any = torch.func.vjp  # its stub does not know how many values it returns


def compiled_adjoint(
    f: Dynamics,
    params: tuple[Tensor, ...],
    y: Tensor,
    t: Tensor,
    grad_y: Tensor,
    settings: SolverSettings,
    norm: Callable[[tuple[Tensor, ...]], Tensor],
    stats: Statistics,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The backward pass of `backsolve`: Algorithm 1 of Chen et al. (2018).

    Args:
        f: the dynamics.
        params: what gets gradients besides the initial state, parameters of modules that `f` is or refers to.
        y: the states at the times `t`, shape (n, *state).
        t: the times.
        grad_y: `∂L/∂y`.
        settings: of the backward solve; its tolerance is one for all of `(z, a, ∂L/∂θ)`.
        norm: of `(0, z, a, *∂L/∂θ)`.
        stats: counters to add to.

    Returns:
        `∂L/∂y0` and `∂L/∂θ`.

    Raises:
        CannotCompile: use `integrate` for the augmented system.
    """
    check(y[0], t, settings)
    if any(p.dtype != y.dtype for p in params):
        raise CannotCompile("parameters have another dtype than the state")

    def run(dynamics: LiftedDynamics) -> tuple[Tensor, tuple[Tensor, ...]]:
        check_no_hidden_dependence(dynamics, f, t[-1].detach().to(y.device), y[-1])
        return _solved(dynamics, params, y, t, grad_y, settings, norm, stats)

    return compiling(f, y, params, run)


def _solved(
    dynamics: LiftedDynamics,
    params: tuple[Tensor, ...],
    y: Tensor,
    t: Tensor,
    grad_y: Tensor,
    settings: SolverSettings,
    norm: Callable[[tuple[Tensor, ...]], Tensor],
    stats: Statistics,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    method = settings.method
    assert isinstance(method, ExplicitRungeKutta)

    # The system is made anew inside the graph, where the size of a batch is variable.

    def augmented(t: Tensor, state: Tensor) -> Tensor:
        return _System(dynamics, y[0], params)(t, state)

    def jump(state: Tensor, z: Tensor, grad_z: Tensor) -> Tensor:
        return _System(dynamics, y[0], params).jumped(state, z, grad_z)

    def packed_norm(x: Tensor) -> Tensor:
        return norm((x.new_zeros(()), *_System(dynamics, y[0], params).unpack(x)))

    times = t.detach().to(y.device, torch.float64)
    last, before = t[-1].item(), t[-2].item()
    system = _System(dynamics, y[0], params)
    state = system.start(y[-1], grad_y[-1])
    h = math.nan if settings.first_step is None else settings.first_step
    control = control_of(settings, math.copysign(1.0, before - last), y)
    key = dynamics.key_with_parameters(method, norm)
    functions = (augmented, method, packed_norm, jump, (y, grad_y))
    status = torch.tensor([len(t) - 1, last, h, 0, 0, 0, 0], dtype=torch.float64, device=y.device)
    tries = 0.0
    while True:
        fixed = (times, control, *tolerance_of(settings, y))
        status, state = call(run_through, key, y[0], *functions, state, status, *fixed, fuse_products=True)
        number, _, _, accepted, tried, _, begun = status.tolist()
        if number == 0:
            break
        if tried < tries + PATIENCE:
            raise CannotCompile("the backward solve fails", failed=True)
        tries = tried
    stages = method.tableau.stages - method.tableau.fsal
    stats.nfe += 2 * (settings.first_step is None) + int(begun) * method.tableau.fsal + int(tried) * stages
    stats.compiled = "solve"
    stats.accepted += int(accepted)
    stats.rejected += int(tried - accepted)
    return system.adjoint(state), tuple(system.gradients(state))


class _System(AdjointEquation):
    """The augmented system in a graph, where the products are found by `torch.func`."""

    def __init__(self, dynamics: LiftedDynamics, y: Tensor, params: tuple[Tensor, ...]):
        super().__init__(y, params)
        self.dynamics = dynamics

    def products(self, t: Tensor, z: Tensor, vector: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        dynamics = self.dynamics
        slope, pull = _vjp(lambda z, *params: with_parameters(dynamics, params)(t, z), z, *self.params)
        return slope, pull(vector)
