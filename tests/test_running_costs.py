"""Running costs against closed forms, in every way to differentiate a solve."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neural_ode import Event, solve
from neural_ode.errors import InvalidArgumentError, SolverError
from neural_ode.nn import (
    ContinuousFlow,
    OdeBlock,
    OnPath,
    RegularizedBlock,
    RegularizedFlow,
    WithRunningCosts,
    jacobian_norm,
    kinetic_energy,
    total_derivative,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Decay(nn.Module):
    """`dz/dt = a z`: `z = z0 exp(a t)`, and so all derivatives."""

    def __init__(self, a: float):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.a * z


class Linear(nn.Module):
    """`dz/dt = A z`, of rows."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.matrix.T


class Wave(nn.Module):
    """`dz/dt = cos(w t)`, whose derivatives are those of the time alone."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.cos(3 * t) * torch.ones_like(z)


def start(rows: int = 4, columns: int = 3) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def at(f: nn.Module, t: float, z: Tensor, noise: Tensor | None = None) -> OnPath:
    time = torch.tensor(t, dtype=z.dtype)
    return OnPath(f, time, z, f(time, z), torch.randn_like(z) if noise is None else noise)


# The integrands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_along_a_path_of_known_ones(order: int) -> None:
    z = start()
    found = total_derivative(order)(at(Decay(-0.7), 0.2, z))
    torch.testing.assert_close(found, (0.7 ** (2 * order)) * z.square().sum(1))
    waves = [math.cos(0.6), -3 * math.sin(0.6), -9 * math.cos(0.6), 27 * math.sin(0.6)]
    found = total_derivative(order)(at(Wave(), 0.2, z))
    torch.testing.assert_close(found, torch.full((4,), 3 * waves[order - 1] ** 2, dtype=z.dtype))


def test_a_derivative_of_time_and_place_together() -> None:
    """`f = t z²`: `z'' = z² + 2 t² z³`, `z''' = 6 t z³ + 6 t³ z⁴`."""

    class Both(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return t * z.square()

    z, t = start(5, 1), 0.4
    second, third = z.square() + 2 * t**2 * z**3, 6 * t * z**3 + 6 * t**3 * z**4
    torch.testing.assert_close(total_derivative(2)(at(Both(), t, z)), second.square().sum(1))
    torch.testing.assert_close(total_derivative(3)(at(Both(), t, z)), third.square().sum(1))


def test_the_jacobian_is_that_of_rows_and_its_mean_the_frobenius_norm() -> None:
    matrix = start(3, 3)
    field, z = Linear(matrix), start(4, 3)
    noise = torch.randn(4, 3, dtype=z.dtype)
    torch.testing.assert_close(jacobian_norm(at(field, 0.0, z, noise)), (noise @ matrix).square().sum(1))
    many = torch.randn(200_000, 3, dtype=z.dtype, generator=torch.Generator().manual_seed(1))
    found = jacobian_norm(at(field, 0.0, torch.zeros_like(many), many))
    assert abs(found.mean() - matrix.square().sum()) < 5 * found.std() / len(many) ** 0.5


def test_an_order_below_one_is_refused() -> None:
    for order in (0, -1, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="order"):
            total_derivative(order)


# Their integrals -------------------------------------------------------------------------------------------------

GRADIENTS = ("direct", "recursive_checkpoint", "backsolve", "interpolating")


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("order", [1, 2])
def test_integrals_of_a_decay_and_their_gradients(gradient: str, order: int) -> None:
    """`∫ ‖d^K z/dt^K‖² dt = a^2K ‖z0‖² (e^2aT - 1) / 2a`, and its derivatives by autograd of this formula."""
    block = RegularizedBlock(Decay(-0.7), {"c": total_derivative(order)}, (0.0, 1.5), gradient=gradient, **EXACT)
    z = start().requires_grad_()
    end = block(z)
    (end.sum() + block.costs["c"].sum()).backward()
    a, z0 = (x.detach().clone().requires_grad_() for x in (block.f.a, z))
    cost = a ** (2 * order) * z0.square().sum(1) * torch.expm1(2 * a * 1.5) / (2 * a)
    (z0 * torch.exp(a * 1.5)).sum().add(cost.sum()).backward()
    torch.testing.assert_close(block.costs["c"], cost, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(z.grad, z0.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(block.f.a.grad, a.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_energy_and_the_jacobian_of_a_rotation(gradient: str) -> None:
    """On a circle of radius r at angular velocity w the energy is `w² r²`, the Jacobian's norm `2 w²`."""
    rotation = Linear(torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64))
    costs = {"energy": kinetic_energy, "Jacobian": jacobian_norm}
    block = RegularizedBlock(rotation, costs, (0.0, 3.0), gradient=gradient, **EXACT)
    z = start(2000, 2)
    block(z)
    torch.testing.assert_close(block.costs["energy"], 3 * 4 * z.square().sum(1), rtol=1e-6, atol=1e-8)
    found = block.costs["Jacobian"]
    assert abs(found.mean() - 3 * 8) < 5 * found.std() / len(z) ** 0.5
    block.costs["Jacobian"].mean().backward()
    # The Jacobian's norm is that of the matrix; its gradient is estimated by the same noise.
    wanted = 3 * 2 * rotation.matrix.detach()
    assert rotation.matrix.grad is not None
    assert (rotation.matrix.grad - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_costs_of_the_state_of_an_image() -> None:
    block = RegularizedBlock(Decay(-0.7), {"c": kinetic_energy}, **EXACT)
    z = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert block(z).shape == z.shape
    expected = 0.49 * z.flatten(1).square().sum(1) * math.expm1(-1.4) / -1.4
    torch.testing.assert_close(block.costs["c"], expected, rtol=1e-6, atol=1e-8)


# How they ride along ---------------------------------------------------------------------------------------------


class Field(nn.Module):
    """A network of place and time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        slope: Tensor = 3 * self.net(torch.cat([z, t.expand(len(z), 1)], 1))
        return slope


ALL = {"energy": kinetic_energy, "Jacobian": jacobian_norm, "R2": total_derivative(2)}


@pytest.mark.parametrize("how", [{"rtol": 1e-4, "atol": 1e-6}, {"rtol": 0.0, "atol": 1e-3}, {"step_size": 0.1}, {}])
def test_the_state_takes_the_steps_of_a_solve_without_costs(how: dict[str, float]) -> None:
    field, z = Field(), start(8, 2)
    block = RegularizedBlock(field, ALL, **how)
    with_costs, steps = block(z), block.stats.nfe
    without = block.eval()(z)
    assert block.stats.nfe == steps
    torch.testing.assert_close(with_costs, without, rtol=1e-9, atol=1e-9)
    assert torch.equal(without, OdeBlock(field, **how)(z))


def test_tolerances_of_entries_are_those_of_the_state() -> None:
    field, z = Field(), start(8, 2)
    atol = torch.tensor([1e-3, 1e-8], dtype=torch.float64)
    block = RegularizedBlock(field, ALL, rtol=1e-5, atol=atol)
    end, steps = block(z), block.stats.nfe
    torch.testing.assert_close(end, block.eval()(z), rtol=1e-9, atol=1e-9)
    assert block.stats.nfe == steps


def test_a_cost_that_is_not_a_number_is_an_error_of_the_solve() -> None:
    block = RegularizedBlock(Decay(-0.7), {"c": lambda at: at.z.flatten(1).sum(1) * math.nan}, **EXACT)
    with pytest.raises(Exception, match=r"(?i)nan|finite"):
        block(start())


def test_a_block_without_costs_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="costs must name"):
        RegularizedBlock(Field(), {})
    with pytest.raises(InvalidArgumentError, match="costs must name"):
        RegularizedFlow(Field(), 2, {})


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ([kinetic_energy], "functions by name"),
        ({"e": 2}, "must be a function of OnPath, got 2"),
        ({"R2": total_derivative}, r"makes a cost of an order: total_derivative\(2\)"),
    ],
)
def test_what_is_no_cost_is_named(costs: Any, words: str) -> None:
    for make in (lambda: RegularizedBlock(Field(), costs), lambda: RegularizedFlow(Field(), 2, costs)):
        with pytest.raises(InvalidArgumentError, match=words):
            make()


@pytest.mark.parametrize("cost", [lambda at: at.z.mean(), lambda at: at.z.sum(1, keepdim=True), lambda at: 1.0])
def test_a_cost_of_another_shape_is_named(cost: Any) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"the cost .*lambda> must be a number for each row, shape \(4,\)"
    ):
        RegularizedBlock(Decay(-0.7), {"c": cost})(start())


def test_states_that_are_numbers_and_states_that_are_complex() -> None:
    block, z = RegularizedBlock(Decay(-0.7), {"c": kinetic_energy}, **EXACT), start(4, 1)[:, 0]
    block(z)
    expected = 0.49 * z.square() * math.expm1(-1.4) / -1.4
    torch.testing.assert_close(block.costs["c"], expected, rtol=1e-6, atol=1e-8)
    with pytest.raises(InvalidArgumentError, match="real states"):
        block(start().to(torch.complex128))


def test_a_block_that_was_used_is_copied_and_kept() -> None:
    costs = {"energy": kinetic_energy, "R2": total_derivative(2), "R3": total_derivative(3)}
    for one in (RegularizedBlock(Field(), costs), RegularizedFlow(Field(), 2, costs)):
        use = one if isinstance(one, RegularizedBlock) else one.log_prob
        use(start(4, 2))
        assert set(one.costs) == set(costs)
        for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert copied.costs == {}
            assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), one.parameters(), strict=True))
        one.eval()
        use(start(4, 2))
        assert one.costs == {}, "those of training would be taken for those of a test"


class Learned(nn.Module):
    """A cost with a parameter: `w ‖z‖²`."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, at: OnPath) -> Tensor:
        return self.w * at.z.flatten(1).square().sum(1)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_cost_may_have_parameters(gradient: str) -> None:
    block = RegularizedBlock(Decay(-0.7), {"c": Learned()}, gradient=gradient, **EXACT)
    assert len(list(block.parameters())) == 2
    block(start())
    block.costs["c"].sum().backward()
    w = block.trained[0].w
    torch.testing.assert_close(w.grad * w.detach(), block.costs["c"].detach().sum(), rtol=1e-5, atol=1e-7)


def test_norm_event_and_lists_are_those_of_a_solve_without_costs() -> None:
    z, decay = start(), Decay(-0.7)
    norms: dict[str, Any] = {"norm": lambda x: x.abs().max(), "rtol": 1e-5, "atol": [1e-4, 1e-6, 1e-8]}
    block = RegularizedBlock(decay, {"c": kinetic_energy}, **norms)
    end, steps = block(z), block.stats.nfe
    torch.testing.assert_close(end, block.eval()(z), rtol=1e-9, atol=1e-9)
    assert block.stats.nfe == steps
    half = Event(lambda t, y: y.abs().max() - 0.5 * z.abs().max(), direction="falling")
    dynamics = WithRunningCosts(decay, [kinetic_energy], torch.randn_like(z))
    found = dynamics.solve((z,), [0.0, 10.0], event=half, **EXACT)
    assert abs(found.t[-1].item() - math.log(2) / 0.7) < 1e-6
    expected = 0.49 * z.square().sum(1) * (1 - 0.25) / 1.4
    torch.testing.assert_close(found.y[1][-1, :, 0], expected, rtol=1e-5, atol=1e-7)


def test_a_tolerance_for_each_part_of_a_flow() -> None:
    field, x = Field(), start(8, 2)
    for rtol in (torch.tensor([1e-3, 1e-5]), [1e-3, 1e-5]):
        flow = RegularizedFlow(field, 2, {"energy": kinetic_energy}, rtol=rtol)
        found, steps = flow.log_prob(x), flow.stats.nfe
        torch.testing.assert_close(found, flow.eval().log_prob(x), rtol=1e-9, atol=1e-9)
        assert flow.stats.nfe == steps


def test_rows_with_steps_and_times_of_their_own() -> None:
    z, ends = start(), torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=torch.float64)
    dynamics = WithRunningCosts(Decay(-0.7), [kinetic_energy], torch.randn_like(z))
    times = torch.stack([torch.zeros_like(ends), ends], 1)
    costs = dynamics.solve((z,), times, batched=True, **EXACT).y[1]
    expected = 0.49 * z.square().sum(1) * torch.expm1(-1.4 * ends) / -1.4
    torch.testing.assert_close(costs[1, :, 0], expected, rtol=1e-5, atol=1e-7)


def test_what_to_do_under_hooks_is_said() -> None:
    block = RegularizedBlock(Field(), {"J": jacobian_norm})
    with pytest.raises(SolverError, match="recursive_checkpoint"):
        checkpoint(block, start(4, 2).requires_grad_(), use_reentrant=False)


@pytest.mark.parametrize("trace", ["exact", "rademacher"])
def test_a_flow_with_costs_has_the_density_of_one_without(trace: str) -> None:
    field, x = Field(), start(8, 2)
    how = {"span": (0.0, 1.0), "trace": trace, "rtol": 1e-6, "atol": 1e-6}
    flow, plain = RegularizedFlow(field, 2, ALL, **how), ContinuousFlow(field, 2, **how)
    found, expected = (one.log_prob(x, generator=torch.Generator().manual_seed(3)) for one in (flow, plain))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert flow.stats.nfe == plain.stats.nfe
    assert all((cost > 0).all() and cost.shape == (8,) for cost in flow.costs.values())
    flow.eval()
    assert torch.equal(
        flow.log_prob(x, generator=torch.Generator().manual_seed(3)),
        plain.log_prob(x, generator=torch.Generator().manual_seed(3)),
    )


def test_costs_do_not_depend_on_the_direction_of_the_solve() -> None:
    flow = RegularizedFlow(Field(), 2, {"energy": kinetic_energy}, rtol=1e-9, atol=1e-9)
    x, _ = flow.push_forward(start(8, 2))
    there = flow.costs["energy"]
    flow.log_prob(x.detach())
    torch.testing.assert_close(flow.costs["energy"], there, rtol=1e-5, atol=1e-7)


def test_costs_beside_other_parts_of_a_state() -> None:
    """A decay beside a counter: costs come last, and look at the first part."""

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Decay(-0.7)

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return self.f(t, state[0]), torch.ones_like(state[1])

    z, counted = start(), Counted()
    dynamics = WithRunningCosts(counted, [kinetic_energy], torch.randn_like(z), counted.f)
    states, count, costs = dynamics.solve((z, z.new_zeros(2)), [0.0, 0.5, 1.0], **EXACT).y
    torch.testing.assert_close(states[-1], z * math.exp(-0.7), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(count[-1], torch.ones(2, dtype=z.dtype))
    assert costs.shape == (3, 4, 1)
    expected = 0.49 * z.square().sum(1) * math.expm1(-1.4) / -1.4
    torch.testing.assert_close(costs[-1, :, 0], expected, rtol=1e-6, atol=1e-8)


def test_the_same_by_a_solve_of_ones_own() -> None:
    """The integral of the energy by SciPy's quadrature of the path."""
    integrate = pytest.importorskip("scipy.integrate")
    field, z = Field(), start(1, 2)
    block = RegularizedBlock(field, {"energy": kinetic_energy}, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        block(z)
        dense = solve(field, z, [0.0, 1.0], rtol=1e-10, atol=1e-10, dense=True).dense

        def energy(t: float) -> float:
            time = torch.tensor(t, dtype=torch.float64)
            return float(field(time, dense(time)).square().sum())

        expected, _ = integrate.quad(energy, 0.0, 1.0, epsabs=1e-9)
    assert abs(block.costs["energy"].item() - expected) < 1e-6 * expected


@pytest.mark.slow
def test_compiled_costs_are_those_of_python() -> None:
    field, x = Field(), start(16, 2)
    found = []
    for compiled in (False, True):
        costs = {"energy": kinetic_energy, "Jacobian": jacobian_norm}
        flow = RegularizedFlow(field, 2, costs, rtol=1e-6, atol=1e-6, gradient="backsolve", compile=compiled)
        field.zero_grad()
        density = flow.log_prob(x, generator=torch.Generator().manual_seed(0))
        sum(cost.mean() for cost in flow.costs.values()).sub(density.mean()).backward()
        gradients = [p.grad.clone() for p in field.parameters() if p.grad is not None]
        found.append([density.detach(), flow.costs["Jacobian"].detach(), *gradients])
    assert flow.stats.compiled
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-8)
