"""Normalizing flows against determinants, quadrature and finite differences, and how they are trained."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor, nn

from neural_ode import InvalidArgumentError, NonFiniteError, UnknownNameError
from neural_ode.compiled import CannotCompile
from neural_ode.nn import ContinuousFlow, WithLogDensity, standard_normal
from neural_ode.nn.continuous_flow import autograd_trace, hutchinson_trace
from reproduction.data.densities import TARGETS, get_target
from reproduction.data.points import POINT_SETS, picture_of_letters, points, points_of_picture
from reproduction.experiments import flows as experiment
from reproduction.experiments.true_density import TRUE_DENSITIES, true_log_prob
from reproduction.experiments.width import eliminated_log_det, width_operations, width_times
from reproduction.measure.fits import fit_line
from reproduction.measure.flow_quality import divergence
from reproduction.measure.operations import OperationCounter
from reproduction.measure.reversal import reversal_error
from reproduction.models.flows import GatedUnits, HamiltonianDynamics, HyperNetwork, PlanarDynamics, PlanarFlow
from reproduction.models.flows.discrete import constrained
from reproduction.training.flows import (
    Likelihood,
    Matching,
    PictureLikelihood,
    _chunk,
    _weight,
    rate_factor,
    train_continuous,
    train_planar,
)
from reproduction.training.planar import PlanarState, _step, planar_gradient, planar_steps

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
T = torch.tensor(0.4, dtype=torch.float64)


def cloud(n: int = 8, dim: int = 2) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64)


def planar(units: int = 4, dim: int = 2) -> nn.Module:
    return PlanarDynamics(HyperNetwork(dim, units, 8)).double()


# Continuous flows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["planar", "any network"])
def test_theorem_1(name: str) -> None:
    """The log-density from the trace against the determinant of the differentiated flow."""
    tolerances = [1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    errors = experiment.theorem_errors(experiment.untrained_flows()[name], cloud(2), tolerances)
    assert errors[-1] < 1e-6
    line = fit_line(*([math.log10(x) for x in values] for values in (tolerances, errors)))
    assert line.slope > 0.6


def test_hamiltonian_flow_preserves_volume() -> None:
    flow = experiment.untrained_flows()["Hamiltonian"]
    z = cloud()
    assert experiment.exact_log_det(flow, z).abs().max() < 1e-9
    for tolerance in (1e-4, 1e-7):
        assert experiment.jacobian_log_det(flow, z, tolerance).abs().max() < 10 * tolerance
    assert not flow.transport(z).change.any()
    assert flow.transport(z).z[-1].sub(z).abs().max() > 0.1


@pytest.mark.parametrize(
    "dynamics", [planar(5, 3), HamiltonianDynamics(3).double(), PlanarDynamics(GatedUnits(3, 4)).double()]
)
def test_traces_in_closed_form(dynamics: nn.Module) -> None:
    z = cloud(6, 3)
    slope, trace = dynamics.with_trace(T, z)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda x: dynamics(T, x[None])[0], p) for p in z])
    torch.testing.assert_close(trace, jacobians.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(slope, dynamics(T, z))
    torch.testing.assert_close(autograd_trace(dynamics, T, z)[1], trace)


def test_planar_dynamics_are_a_gated_sum_of_units() -> None:
    dynamics = planar(3)
    z = cloud(5)
    made = dynamics.weights.layers(T.reshape(1)).reshape(6, 3)
    expected = torch.zeros_like(z)
    for m in range(3):
        gate = 1 / (1 + torch.exp(-made[5, m]))
        expected += gate * torch.tanh(z @ made[:2, m] + made[4, m])[:, None] * made[2:4, m]
    torch.testing.assert_close(dynamics(T, z), expected)


def test_hutchinson_is_unbiased() -> None:
    dynamics, z = planar(), cloud(3)
    exact = dynamics.with_trace(T, z)[1]
    for kind in ("gaussian", "rademacher"):
        flow = ContinuousFlow(dynamics, 2, trace=kind)
        noise = flow._noise(z.repeat(4000, 1), torch.Generator().manual_seed(0))
        assert noise is not None
        found = hutchinson_trace(dynamics, T, z.repeat(4000, 1), noise)[1].reshape(4000, 3)
        error = found.std(0) / 4000**0.5
        assert ((found.mean(0) - exact).abs() < 4 * error).all(), kind
        assert (found.std(0) > 1e-3).all()
        if kind == "rademacher":
            assert set(noise.unique().tolist()) == {-1.0, 1.0}


def test_noise_is_fixed_for_a_solve_and_new_for_the_next() -> None:
    """With noise drawn anew at every evaluation the solver would never meet a tight tolerance."""
    flow = ContinuousFlow(planar(), 2, trace="gaussian", **TIGHT)
    x = cloud(4)
    first, second, again = (flow.log_prob(x, torch.Generator().manual_seed(seed)) for seed in (1, 2, 1))
    assert flow.stats.nfe < 1000
    assert torch.equal(first, again)
    assert (first - second).abs().min() > 1e-6
    noise = flow._noise(x, torch.Generator().manual_seed(1))
    dynamics = WithLogDensity(flow.f, "gaussian", noise)
    state = (x, x.new_zeros(4))
    assert torch.equal(dynamics(T, state)[1], dynamics(T, state)[1])


def test_transport_goes_both_ways() -> None:
    flow = ContinuousFlow(planar(), 2, (0.5, 2.0), **TIGHT)
    z = cloud()
    there = flow.transport(z, [0.5, 1.0, 2.0])
    assert there.z.shape == (3, 8, 2)
    assert there.change.shape == (3, 8)
    back = flow.transport(there.z[-1], [2.0, 1.0, 0.5])
    torch.testing.assert_close(back.z.flip(0), there.z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back.change[-1], -there.change[-1], rtol=1e-7, atol=1e-7)
    x, log_prob = flow.push_forward(z)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-7, atol=1e-7)


def test_samples_are_base_points_carried_along() -> None:
    flow = ContinuousFlow(planar(), 2, **TIGHT)
    drawn = flow.sample(5, torch.Generator().manual_seed(3))
    z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, flow.push_forward(z)[0], rtol=1e-7, atol=1e-7)
    assert not drawn.requires_grad


def integral(log_prob, window: float = 8.0) -> float:
    grid = experiment.density_grid(log_prob, window, 160)
    return float(grid.sum()) * (2 * window / 160) ** 2


def test_untrained_densities_integrate_to_one() -> None:
    torch.manual_seed(1)
    flows = {
        "planar": ContinuousFlow(PlanarDynamics(HyperNetwork(2, 8)), 2, rtol=1e-5, atol=1e-5),
        "Hamiltonian": ContinuousFlow(HamiltonianDynamics(2), 2, rtol=1e-5, atol=1e-5),
        "discrete": PlanarFlow(2, 6),
        "discrete, to the base": PlanarFlow(2, 6, "base"),
    }
    for name, flow in flows.items():
        assert abs(integral(flow.log_prob) - 1) < 0.01, name


@pytest.mark.parametrize("gradient", ["direct", "recursive_checkpoint", "backsolve", "interpolating"])
@pytest.mark.parametrize("trace", ["exact", "autograd", "gaussian", "rademacher"])
def test_gradients_of_the_log_density(trace: str, gradient: str) -> None:
    """Also of estimates: with the same noise they are functions of the parameters like any other."""
    torch.manual_seed(0)
    flow = ContinuousFlow(planar(2), 2, trace=trace, gradient=gradient, **TIGHT)
    x = cloud(3)

    def total() -> Tensor:
        return flow.log_prob(x, torch.Generator().manual_seed(7)).sum()

    total().backward()
    parameter = flow.f.weights.layers[4].weight
    assert parameter.grad is not None
    for i, j in ((0, 1), (5, 3), (9, 7)):
        values = []
        for shift in (-1e-4, 1e-4):
            with torch.no_grad():
                parameter[i, j] += shift
                values.append(float(total()))
                parameter[i, j] -= shift
        expected = (values[1] - values[0]) / 2e-4
        assert float(parameter.grad[i, j]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_estimated_traces_can_be_compiled() -> None:
    """Forward mode inside of a graph; a fall-back would warn, and warnings are errors here."""
    torch.manual_seed(0)
    dynamics, x, found = planar(2), cloud(3), []
    for compiled in (False, True):
        flow = ContinuousFlow(dynamics, 2, trace="gaussian", compile=compiled, **TIGHT)
        flow.log_prob(x, torch.Generator().manual_seed(7)).sum().backward()
        found.append([p.grad.clone() for p in dynamics.parameters()])
        dynamics.zero_grad()
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["tsit5", "adams", "rk4"])
def test_any_solver(method: str) -> None:
    dynamics, x = planar(), cloud(4)
    how = {"step_size": 0.02} if method == "rk4" else TIGHT
    found = ContinuousFlow(dynamics, 2, method=method, **how).log_prob(x)
    torch.testing.assert_close(found, ContinuousFlow(dynamics, 2, **TIGHT).log_prob(x), rtol=1e-6, atol=1e-6)


def test_typed_errors() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'gaussian'"):
        ContinuousFlow(planar(), 2, trace="gausian")
    with pytest.raises(InvalidArgumentError, match=r"span must be two different times .*\(1.0, 1.0\)"):
        ContinuousFlow(planar(), 2, span=(1.0, 1.0))
    with pytest.raises(InvalidArgumentError, match=r"z must have shape \(n, 2\), got \(3, 4\)"):
        ContinuousFlow(planar(), 2).log_prob(torch.zeros(3, 4, dtype=torch.float64))
    with pytest.raises(InvalidArgumentError, match=r"floating-point tensor, got torch\.int64"):
        PlanarFlow(2, 3).log_prob(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(InvalidArgumentError, match="layers must be a whole number of at least 1, got 0"):
        PlanarFlow(2, 0)
    with pytest.raises(UnknownNameError, match="leads_to"):
        PlanarFlow(2, 3, leads_to="dat")
    with pytest.raises(InvalidArgumentError, match="dim must be at least 2"):
        HamiltonianDynamics(1)
    with pytest.raises(InvalidArgumentError, match="n must be a whole number of at least 1, got 0"):
        PlanarFlow(2, 3).sample(0)


# Planar flows ----------------------------------------------------------------------------------------------------


def test_the_constraint_keeps_layers_invertible() -> None:
    w, u = 3 * cloud(500), 3 * cloud(500)
    free = constrained(w, u)
    assert ((w * free).sum(1) > -1 - 1e-12).all()
    assert ((w * u).sum(1) < -1).any()
    # Only the component along w is changed: to log(1 + exp(wᵀu)) - 1.
    across = torch.stack([-w[:, 1], w[:, 0]], 1)
    torch.testing.assert_close((across * free).sum(1), (across * u).sum(1))
    expected = torch.log1p(torch.exp((w * u).sum(1))) - 1
    torch.testing.assert_close((w * free).sum(1), expected)


def steep(layers: int = 6, leads_to="data") -> PlanarFlow:
    flow = PlanarFlow(2, layers, leads_to).double()
    with torch.no_grad():
        flow.w.mul_(3)
        flow.u.mul_(20)
    return flow


def test_log_determinant_of_planar_layers() -> None:
    flow, z = steep(), cloud(6)
    found, log_det = flow(z)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda p: flow(p[None])[0][0], row) for row in z])
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobians).logabsdet)
    torch.testing.assert_close(flow.trajectory(z)[-1], found)
    assert log_det.abs().max() > 0.1


@pytest.mark.parametrize("leads_to", ["data", "base"])
def test_planar_flows_can_be_inverted(leads_to: str) -> None:
    flow, z = steep(leads_to=leads_to), cloud(50)
    torch.testing.assert_close(flow.inverse(flow(z)[0]), z, rtol=1e-8, atol=1e-8)
    x, log_prob = flow.push_forward(z)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-7, atol=1e-7)
    assert torch.equal(
        flow.sample(4, torch.Generator().manual_seed(0)), flow.sample(4, torch.Generator().manual_seed(0))
    )


def test_part_of_a_planar_flow() -> None:
    z = cloud(5)
    for leads_to in ("data", "base"):
        flow = steep(8, leads_to)
        whole, half = experiment.partial_planar(flow, 1.0), experiment.partial_planar(flow, 0.5)
        torch.testing.assert_close(whole.double().push_forward(z)[0], flow.push_forward(z)[0], rtol=1e-5, atol=1e-5)
        assert len(half.b) == 4
        near = flow.w[:4] if leads_to == "data" else flow.w[4:]
        torch.testing.assert_close(half.w, near.float())


def energy(x: Tensor, y: Tensor) -> Tensor:
    return get_target("U3").potential(x, y)


def test_written_out_gradient_of_planar_flows() -> None:
    flow, z = steep(), cloud(16)
    weight = torch.tensor(0.7, dtype=torch.float64)
    x, log_det = flow(z)
    (weight * energy(x[:, 0], x[:, 1]) - log_det).mean().backward()
    found = planar_gradient(
        flow.w[None].detach(), flow.u[None].detach(), flow.b[None].detach(), z[None], weight, energy
    )
    for mine, name in zip(found, ("w", "u", "b"), strict=True):
        torch.testing.assert_close(mine[0], getattr(flow, name).grad)


def test_steps_of_planar_flows_are_those_of_rmsprop() -> None:
    flow = PlanarFlow(2, 4).double()
    names = ("w", "u", "b")
    state = PlanarState.start(*(getattr(flow, name).detach().clone()[None] for name in names))
    inputs = torch.randn(5, 1, 16, 2, dtype=torch.float64)
    optimizer = torch.optim.RMSprop(flow.parameters(), lr=1e-3, momentum=0.9)
    for z in inputs[:, 0]:
        optimizer.zero_grad()
        x, log_det = flow(z)
        (energy(x[:, 0], x[:, 1]) - log_det).mean().backward()
        optimizer.step()
    rates, weights = torch.full((5,), 1e-3, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    eager = state
    for row in zip(inputs, rates, weights, strict=True):
        eager = PlanarState(*_step(energy, tuple(eager), *row))
    compiled = planar_steps(state, inputs, rates, weights, energy, "U3")
    for found in (eager, compiled):
        for value, name in zip(found[:3], names, strict=True):
            torch.testing.assert_close(value[0], getattr(flow, name).detach(), rtol=1e-9, atol=1e-9)


# Targets and points ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_constants_of_the_targets(name: str) -> None:
    """Against SciPy's adaptive quadrature of the formulas as Rezende & Mohamed print them."""

    def density(y: float, x: float) -> float:
        w1, edge = np.sin(np.pi * x / 2), np.exp(-0.5 * (max(abs(x) - 4, 0) / 0.4) ** 2)
        w2, w3 = 3 * np.exp(-0.5 * ((x - 1) / 0.6) ** 2), 3 / (1 + np.exp(-(x - 1) / 0.3))
        if name == "U1":
            two = np.exp(-0.5 * ((x - 2) / 0.6) ** 2) + np.exp(-0.5 * ((x + 2) / 0.6) ** 2)
            return np.exp(-0.5 * ((np.hypot(x, y) - 2) / 0.4) ** 2) * two
        if name == "U2":
            return np.exp(-0.5 * ((y - w1) / 0.4) ** 2) * edge
        width, lift = (0.35, w2) if name == "U3" else (0.4, w3)
        two = np.exp(-0.5 * ((y - w1) / width) ** 2) + np.exp(-0.5 * ((y - w1 + lift) / 0.35) ** 2)
        return two * edge

    expected, error = scipy.integrate.dblquad(density, -7, 7, -7, 7, epsabs=1e-5, epsrel=1e-5)
    assert error < 1e-3
    assert math.exp(get_target(name).log_constant) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_gradients_of_the_targets_are_finite(name: str) -> None:
    z = torch.tensor([[0.0, 0.0], [30.0, -30.0], [-4.0, 0.0]], requires_grad=True)
    get_target(name).energy(z).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", POINT_SETS)
def test_sets_of_points(name: str) -> None:
    drawn = points(name, 2000, 0)
    assert drawn.shape == (2000, 2)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, points(name, 2000, 0))
    assert not torch.equal(drawn, points(name, 2000, 1))
    assert drawn.abs().max() < 5
    assert (drawn.std(0) > 0.5).all()


def test_circles_and_moons_are_those_of_scikit_learn() -> None:
    """Radii of the circles; distances to the two arcs of `make_moons`."""
    radius = points("two circles", 4000, 0).norm(dim=1)
    assert abs(float((radius > 2.25).float().mean()) - 0.5) < 0.03
    assert abs(float(radius[radius > 2.25].mean()) - 3) < 0.03
    moons = points("two moons", 4000, 0) / 2 + torch.tensor([0.5, 0.25])
    upper = (moons.norm(dim=1) - 1).abs()
    lower = ((moons - torch.tensor([1.0, 0.5])).norm(dim=1) - 1).abs()
    assert float(torch.minimum(upper, lower).mean()) == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.1)


@pytest.mark.parametrize("name", TRUE_DENSITIES)
def test_true_densities_integrate_to_one_and_are_those_of_the_points(name: str) -> None:
    """On squares of half a unit: as many of 100,000 points as the density says."""
    n, window = 400, 5.0
    grid = experiment.density_grid(lambda x: true_log_prob(name, x), window, n).double() * (2 * window / n) ** 2
    assert float(grid.sum()) == pytest.approx(1, abs=1e-6)
    drawn = points(name, 100_000, 3).double()
    edges = torch.linspace(-window, window, 21, dtype=torch.float64)
    found, _ = torch.histogramdd(drawn.flip(1), [edges, edges])
    expected = 100_000 * grid.reshape(20, n // 20, 20, n // 20).sum((1, 3))
    filled = expected > 5
    squares = ((found - expected).square() / expected)[filled]
    assert found[~filled].sum() < 200
    assert float(squares.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / len(squares)))


def test_true_densities_are_averages_over_the_angle() -> None:
    """The middle of 20,000 arcs instead of a Bessel function, or of Gauss' points."""
    x = torch.tensor([[0.0, 0.0], [1.4, 0.2], [-2.0, 2.5], [4.0, -4.0]], dtype=torch.float64)
    half = math.pi * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000

    def average(radius: float, angle: Tensor, centre: tuple[float, float], noise: float) -> Tensor:
        arc = radius * torch.stack([angle.cos(), angle.sin()], 1) + torch.tensor(centre)
        bells = -torch.cdist(x, arc).square() / (2 * noise**2)
        return bells.logsumexp(1) - math.log(2 * math.pi * noise**2 * len(angle))

    circles = torch.logaddexp(*(average(radius, 2 * half, (0.0, 0.0), 0.24) for radius in (3.0, 1.5)))
    torch.testing.assert_close(true_log_prob("two circles", x), circles - math.log(2))
    moons = torch.logaddexp(average(2, half, (-1.0, -0.5), 0.2), average(2, half + math.pi, (1.0, 0.5), 0.2))
    torch.testing.assert_close(true_log_prob("two moons", x.float()), moons - math.log(2), rtol=1e-6, atol=1e-6)


def test_other_densities_are_not_known() -> None:
    with pytest.raises(UnknownNameError, match="unknown density of points 'pinwheel'"):
        true_log_prob("pinwheel", cloud())


def test_a_picture_of_letters() -> None:
    picture = picture_of_letters("I")
    assert picture.shape == (120, 120)
    assert picture.max() == 255
    row, column = np.argwhere(picture > 128).mean(0)
    assert row == pytest.approx(60, abs=5)
    assert column == pytest.approx(60, abs=5)


def test_points_of_a_picture() -> None:
    drawn = points_of_picture([[0, 1], [0, 0]], 500, 0)
    assert (drawn >= 0).all()  # the right half, on top
    assert drawn.max() <= 4
    assert drawn.mean() == pytest.approx(2, abs=0.2)
    with pytest.raises(InvalidArgumentError, match="not empty"):
        points_of_picture([[0, 0]], 5, 0)
    with pytest.raises(UnknownNameError, match="did you mean 'two moons'"):
        points("two moon", 5, 0)
    with pytest.raises(UnknownNameError, match="known: U1, U2, U3, U4"):
        get_target("U5")


# Training --------------------------------------------------------------------------------------------------------

QUICK = {"iterations": 40, "batch": 64, "rate": 0.02, "hidden": 8, "annealing": 0.0, "span": 1.0, "records": 2}
LOOSE = {"rtol": 1e-3, "atol": 1e-3}


def refuse(*_: object) -> None:
    raise CannotCompile("there is no compiler")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planar flows without a compiler: one test above compiles them."""
    monkeypatch.setattr("neural_ode.compiled.folding.call", refuse)


@pytest.mark.usefixtures("eager")
def test_training_brings_both_flows_near_a_target() -> None:
    """And the trained densities integrate to one."""
    target = get_target("U1")
    flow, history = train_continuous(Matching("U1"), 4, 0, QUICK, LOOSE)
    before = divergence(ContinuousFlow(PlanarDynamics(HyperNetwork(2, 4)), 2, **LOOSE), target, 1000)
    assert divergence(flow, target, 1000) < before - 1
    assert history[0]["nfe_forward"] >= 8
    assert history[-1]["loss"] < history[0]["loss"]
    discrete = train_planar([(Matching("U1"), 0), (Matching("U2"), 0)], 4, {**QUICK, "iterations": 500})[0]["U1", 0]
    assert divergence(discrete, target, 1000) < before - 1
    for trained in (flow, discrete):
        assert abs(integral(trained.log_prob) - 1) < 0.01


@pytest.mark.usefixtures("eager")
def test_training_by_likelihood_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two chunks and resumed: the same flow, bit for bit."""
    monkeypatch.setattr("reproduction.training.flows.CHUNK", 20)
    monkeypatch.setattr("reproduction.training.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    straight, _ = train_planar([(Likelihood("two moons"), 0)], 3, QUICK)
    calls = iter(range(100))

    def stop_at_second(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return planar_steps(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("reproduction.training.flows.planar_steps", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            train_planar([(Likelihood("two moons"), 0)], 3, QUICK, tmp_path / "a.pt")
    resumed, _ = train_planar([(Likelihood("two moons"), 0)], 3, QUICK, tmp_path / "a.pt")
    for a, b in zip(straight["two moons", 0].parameters(), resumed["two moons", 0].parameters(), strict=True):
        assert torch.equal(a, b)
    x = points("two moons", 500, 7)
    assert straight["two moons", 0].log_prob(x).mean() > standard_normal(x).mean()


@pytest.mark.usefixtures("eager")
def test_planar_training_is_its_steps_one_chunk_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out, the last chunk a short one: the same parameters, bit for bit."""
    monkeypatch.setattr("reproduction.training.flows.CHUNK", 30)
    objective = Likelihood("two moons")
    trained = train_planar([(objective, 5)], 3, QUICK)[0]["two moons", 5]
    torch.manual_seed(5)
    state = PlanarState.start(*(p.detach()[None] for p in PlanarFlow(2, 3, "base").parameters()))
    for first, number in ((0, 30), (30, 10)):
        state = planar_steps(state, *_chunk([(objective, 5)], QUICK, first, number), objective.energy, "two moons")
    for found, expected in zip(trained.parameters(), state[:3], strict=True):
        assert torch.equal(found, expected[0])


@pytest.mark.usefixtures("eager")
def test_time_before_an_interruption_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes a second further whenever it is looked at."""
    monkeypatch.setattr("reproduction.training.flows.CHUNK", 20)
    monkeypatch.setattr("reproduction.training.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    clock = iter(range(1000))
    monkeypatch.setattr("reproduction.training.loop.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    calls = iter([None, KeyboardInterrupt])

    def interrupted(*arguments):
        if error := next(calls, None):
            raise error
        return planar_steps(*arguments)

    monkeypatch.setattr("reproduction.training.flows.planar_steps", interrupted)
    file, run = tmp_path / "a.pt", ([(Likelihood("two moons"), 0)], 3, QUICK)
    with pytest.raises(KeyboardInterrupt):
        train_planar(*run, file)
    first = torch.load(file)["progress"]["seconds"]
    train_planar(*run, file)
    assert 0 < first < torch.load(file)["progress"]["seconds"]
    assert train_planar(*run, file)[1] == torch.load(file)["progress"]["seconds"]


@pytest.mark.usefixtures("eager")
def test_divergence_of_training_is_reported() -> None:
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        train_planar([(Likelihood("two moons"), 0)], 3, {**QUICK, "iterations": 2, "rate": float("inf")})


def test_every_step_has_points_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the same seed and step, other ones for another seed or step."""
    tasks = []
    monkeypatch.setattr("reproduction.training.flows.fit", lambda task, checkpoint: tasks.append(task))
    for seed in (0, 1):
        train_continuous(Likelihood("two moons"), 2, seed, QUICK, LOOSE)
    drawn = [task.batch(step)[0] for task in tasks for step in (0, 1)]
    assert torch.equal(drawn[0], tasks[0].batch(0)[0])
    pairs = [(Likelihood("two moons"), seed) for seed in (0, 1)]
    chunks = [_chunk(pairs, QUICK, first, 20)[0] for first in (0, 20)]
    assert chunks[0].shape == (20, 2, 64, 2)
    drawn += [chunk[:, row].flatten(0, 1) for chunk in chunks for row in (0, 1)]
    drawn += [Matching("U1").inputs(64, seed) for seed in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 3), (3, 2))]
    for k, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:k])


@pytest.mark.usefixtures("eager")
def test_planar_flows_trained_together_are_those_trained_alone() -> None:
    """Each for its own target, from its own seed, and each gets its own parameters back."""
    training = {**QUICK, "iterations": 5, "annealing": 0.5}
    pairs = [(Matching("U1"), 0), (Matching("U3"), 0), (Matching("U3"), 1)]  # any: those that are missing
    together, _ = train_planar(pairs, 2, training)
    assert list(together) == [("U1", 0), ("U3", 0), ("U3", 1)]
    for objective, seed in pairs:
        alone = train_planar([(objective, seed)], 2, training)[0][objective.name, seed]
        for a, b in zip(together[objective.name, seed].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_energy_of_the_base_distribution() -> None:
    x, y = cloud().unbind(1)
    normal = torch.distributions.Normal(0.0, 1.0)
    constant = Likelihood("two moons").energy(x, y) + normal.log_prob(x) + normal.log_prob(y)
    torch.testing.assert_close(constant, torch.full_like(x, -math.log(2 * math.pi)))


def test_weight_of_an_annealed_target() -> None:
    """From 0.01 to 1 over a half of 100 steps, and at once without annealing."""
    assert [_weight(step, 100, 0.5) for step in (0, 25, 49, 50, 99)] == pytest.approx([0.01, 0.51, 0.99, 1, 1])
    assert _weight(0, 100, 0.0) == 1
    flow, z = ContinuousFlow(planar(), 2, **TIGHT), cloud()
    x, log_prob = flow.push_forward(z)
    expected = (log_prob + 0.3 * get_target("U1").potential(x[:, 0], x[:, 1])).mean()
    torch.testing.assert_close(Matching("U1").loss(flow, z, 0.3), expected)


def test_pictures_are_told_apart() -> None:
    """By what they show, so that one is not trained on with the checkpoint of another."""
    first, other = (PictureLikelihood("face", picture) for picture in ([[0, 1]], [[1, 0]]))
    assert first.identity == PictureLikelihood("face", [[0, 1]]).identity != other.identity


def test_learning_rate_falls_in_the_second_half() -> None:
    assert [rate_factor(step, 8) for step in (0, 4, 6, 8)] == [1.0, 1.0, 0.5, 0.0]


def test_divergence_is_absolute() -> None:
    """Of a flow that is the standard normal, against quadrature."""
    flow, target = PlanarFlow(2, 1), get_target("U1")
    with torch.no_grad():
        flow.w.copy_(torch.tensor([[1.0, 0.0]]))
        flow.u.copy_(math.log(math.e - 1) * flow.w)  # m(wᵀu) = 0, so û = 0
    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_q = standard_normal(z)
    expected = float((log_q.exp() * (log_q - target.log_prob(z))).sum()) * float(axis[1] - axis[0]) ** 2
    assert divergence(flow, target, 40_000) == pytest.approx(expected, rel=0.05)


def test_reversal_error_falls_with_the_tolerance() -> None:
    flow = ContinuousFlow(planar(), 2)
    loose, tight = (reversal_error(flow, cloud(), tolerance) for tolerance in (1e-3, 1e-8))
    assert tight < 1e-6 < 1e-3 * 30
    assert tight < loose or loose < 1e-6
    assert flow.how == {}


def test_part_of_a_continuous_flow() -> None:
    flow = ContinuousFlow(planar(), 2, **TIGHT)
    x = cloud(4)
    early = experiment.transported_density(flow, 1e-6)(x)
    torch.testing.assert_close(early, standard_normal(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(experiment.transported_density(flow, 1.0)(x), flow.log_prob(x))


def test_times_against_width() -> None:
    times = width_times([64, 4096], [32, 64, 512], 256, 3)
    assert [len(found) for found in times.values()] == [2, 3]
    assert times["trace"][1] > 4 * times["trace"][0]
    assert times["determinant"][2] > 8 * times["determinant"][0]


def test_operations_against_width() -> None:
    """In two dimensions, of a trace: 4 M for wᵀz and as many for the slope, 1 each for b, tanh, square and 1 - h',
    2 for the trace, for every point; for all of them 5 M for the gates, 3 of these for the weights, 2 for a sum."""
    (trace, wide), (determinant,) = width_operations([10, 1000], [30], 64).values()
    assert trace == pytest.approx(10 * (14 + (3 + 2 + 2 + 2) / 64))
    assert wide == pytest.approx(100 * trace)
    n = 30
    matrix = 4 * n + 4 * n + 4 * n**2 + n**2 + n**2  # wᵀz + b, its h', W Uᵀ, times h', plus I
    assert determinant == pytest.approx(matrix + _of_elimination(n), abs=n)


def test_elimination_finds_the_determinant_in_two_thirds_of_the_cube() -> None:
    n = 40
    matrix = torch.eye(n, dtype=torch.float64) + 0.05 * torch.randn(n, n, dtype=torch.float64)
    before = matrix.clone()
    with OperationCounter() as counter:
        found = eliminated_log_det(matrix)
    torch.testing.assert_close(found, torch.linalg.slogdet(matrix).logabsdet)
    assert torch.equal(matrix, before)
    assert counter.total == _of_elimination(n)


def _of_elimination(n: int) -> int:
    """Divisions, then a multiplication and a subtraction of what is left; modulus, logarithm, sum."""
    return sum(k + 2 * k**2 for k in range(n)) + 3 * n


def test_cost_of_both_ways() -> None:
    flow = ContinuousFlow(planar(), 2, (0.0, 3.0), rtol=1e-6, atol=1e-6)
    cost = experiment.cost_both_ways(flow, cloud(), 1)
    assert set(cost) == {"density", "sampling, with density", "sampling"}
    assert all(found["nfe"] >= 14 and found["seconds"] > 0 for found in cost.values())
