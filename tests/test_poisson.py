"""Poisson processes, against closed forms, quadrature and statistics."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError, UnknownNameError
from reproduction.data.events import RATES, Events, draw_events, padded, thinned
from reproduction.data.oscillators import END, draw_oscillators, oscillator_rate
from reproduction.experiments import poisson, stuck_rates
from reproduction.models.joint import JointModel
from reproduction.models.poisson import PoissonODE, RateNetwork, poisson_log_likelihood
from reproduction.results import Store
from reproduction.training.poisson import (
    RateModel,
    joint_error,
    joint_rates,
    rate_error,
    relative_squared_error,
    train_joint,
    train_rate,
    true_log_likelihood,
)
from reproduction.workspace import Workspace

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


class Still(nn.Module):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


class Grow(nn.Module):
    """`dz/dt = a z`."""

    def __init__(self, a: float):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.a * z


class First(nn.Module):
    """The rate is the first coordinate."""

    def forward(self, z: Tensor) -> Tensor:
        return z[..., 0]


EVENTS = padded([torch.tensor([0.4, 1.0, 2.5], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)], 4.0)


def solve_events(model: PoissonODE, z0: Tensor):
    return model.solve(z0, EVENTS.times, EVENTS.mask, EVENTS.end)


def test_constant_rate() -> None:
    z0 = torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    found = solve_events(PoissonODE(Still(), First(), **TIGHT), z0).log_likelihood
    expected = torch.tensor([3 * math.log(2) - 8, math.log(0.5) - 2], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_exponential_rate_and_its_gradient() -> None:
    """`λ(t) = c exp(a t)`: `Σ (log c + a t_i) - c (exp(a T) - 1) / a`, differentiated by hand too."""
    a, c, end = 0.3, torch.tensor([[2.0], [0.5]], dtype=torch.float64, requires_grad=True), EVENTS.end
    process = PoissonODE(Grow(a), First(), **TIGHT)
    found = solve_events(process, c)
    count, total = EVENTS.lengths, (EVENTS.times * EVENTS.mask).sum(1)
    grown = math.exp(a * end)
    expected = count * c[:, 0].log() + a * total - c[:, 0] * (grown - 1) / a
    torch.testing.assert_close(found.log_likelihood, expected)
    gradients = torch.autograd.grad(found.log_likelihood.sum(), [c, process.dynamics.a])
    torch.testing.assert_close(gradients[0][:, 0], count / c[:, 0] - (grown - 1) / a)
    by_a = total - c[:, 0] * (end * grown / a - (grown - 1) / a**2)
    torch.testing.assert_close(gradients[1], by_a.sum())


def test_network_against_quadrature() -> None:
    torch.manual_seed(1)
    process = PoissonODE(Spin(), RateNetwork(2, 5).double(), **TIGHT)
    z0 = torch.randn(2, 2, dtype=torch.float64)
    found = solve_events(process, z0).log_likelihood

    @torch.no_grad()
    def rate(t: float, row: int) -> float:
        return process.rate(Spin.state(z0[row], t)).detach().item()

    for row in range(2):
        integral, _ = scipy.integrate.quad(rate, 0, EVENTS.end, (row,), epsabs=1e-10)
        logs = sum(math.log(rate(float(t), row)) for t in EVENTS.times[row, : EVENTS.lengths[row]])
        assert float(found[row]) == pytest.approx(logs - integral, abs=1e-7)
    grid = torch.linspace(0, 4, 9, dtype=torch.float64)
    expected = [[rate(float(t), row) for t in grid] for row in range(2)]
    torch.testing.assert_close(process.rates(z0, grid).detach(), torch.tensor(expected, dtype=torch.float64))


class Spin(nn.Module):
    """Rotation, whose solution is known."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-z[..., 1], z[..., 0]], dim=-1)

    @staticmethod
    def state(z0: Tensor, t: float) -> Tensor:
        c, s = math.cos(t), math.sin(t)
        return torch.stack([c * z0[0] - s * z0[1], s * z0[0] + c * z0[1]])


def test_trajectory_and_likelihood_come_out_of_one_solve() -> None:
    calls = []

    class Counting(Spin):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            calls.append(t)
            return super().forward(t, z)

    found = solve_events(PoissonODE(Counting(), RateNetwork(2, 5).double(), **TIGHT), torch.ones(2, 2).double())
    assert len(calls) == found.stats.nfe
    for row, times in enumerate(EVENTS.times):
        for k, t in enumerate(times.tolist()):
            torch.testing.assert_close(found.at_events[row, k], Spin.state(torch.ones(2).double(), t))


def test_padding_counts_for_nothing() -> None:
    rates = torch.tensor([[2.0, 0.0], [3.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    found = poisson_log_likelihood(rates, torch.ones(2), mask)
    torch.testing.assert_close(found, torch.tensor([math.log(2) - 1, math.log(12) - 1]))
    (gradient,) = torch.autograd.grad(found.sum(), rates)
    torch.testing.assert_close(gradient, torch.tensor([[1 / 2, 0], [1 / 3, 1 / 4]]))


def test_wrong_arguments_are_refused_by_name() -> None:
    process = PoissonODE(Still(), First())
    with pytest.raises(InvalidArgumentError, match="2 rows of events for 1 initial states"):
        solve_events(process, torch.ones(1, 1).double())
    with pytest.raises(InvalidArgumentError, match=r"events until 3\.0 must not be after the end 2\.0"):
        process.solve(torch.ones(2, 1).double(), EVENTS.times, EVENTS.mask, 2.0)
    with pytest.raises(UnknownNameError, match="unknown rate 'constnat', did you mean 'constant'"):
        draw_events("constnat", 1, 0)
    with pytest.raises(InvalidArgumentError, match="sequences must be positive, got 0"):
        draw_events("constant", 0, 0)
    with pytest.raises(InvalidArgumentError, match=r"between 0 and 1\.0"):
        thinned(lambda t: 2 + t, 1.0, 50.0, torch.Generator().manual_seed(0))
    with pytest.raises(InvalidArgumentError, match="series must be positive"):
        draw_oscillators(0, 0.1, 0)


@pytest.mark.parametrize("name", RATES)
def test_events_follow_their_rate(name: str) -> None:
    """Rescaled by the integral of the rate, the events of all sequences are uniform (Kolmogorov-Smirnov)."""
    kind, events = RATES[name], draw_events(name, 400, 0)
    grid = torch.linspace(0, kind.end, 20001, dtype=torch.float64)
    integral = torch.cumulative_trapezoid(kind.rate(grid), grid)
    total = float(integral[-1])
    count = int(events.lengths.sum())
    assert abs(count - 400 * total) < 5 * math.sqrt(400 * total)
    scaled = (
        integral[(torch.searchsorted(grid, events.times[events.mask]) - 1).clamp(max=len(integral) - 1)] / total
    )
    assert scipy.stats.kstest(scaled.numpy(), "uniform").pvalue > 1e-3
    assert (events.times.diff(dim=1) >= 0).all()
    again, other = draw_events(name, 400, 0), draw_events(name, 400, 1)
    assert torch.equal(events.times, again.times)
    assert not torch.equal(events.lengths, other.lengths)


def test_oscillators_are_observed_where_their_state_is_high() -> None:
    data = draw_oscillators(300, 0.0, 0)
    angle = data.phase[:, None] + data.events.times
    torch.testing.assert_close(data.values[..., 1][data.events.mask].double(), angle.sin()[data.events.mask])
    assert (data.values[~data.events.mask] == 0).all()
    assert int(data.events.lengths.min()) >= 1
    # The mean of sin over events: ∫ λ sin / ∫ λ, with phases uniform: 0.9 / 2.
    assert float(data.values[..., 1][data.events.mask].mean()) == pytest.approx(0.45, abs=0.03)


def test_true_log_likelihood_against_the_sum_over_events() -> None:
    kind, events = RATES["periodic"], draw_events("periodic", 3, 0)
    integral, _ = scipy.integrate.quad(lambda t: float(kind.rate(torch.tensor(t).double())), 0, kind.end)
    for row, n in enumerate(events.lengths.tolist()):
        logs = sum(math.log(float(kind.rate(t))) for t in events.times[row, :n])
        assert float(true_log_likelihood("periodic", events)[row]) == pytest.approx(logs - integral, abs=1e-6)


def test_a_learned_rate_is_nearer_to_the_true_one_than_the_mean_rate() -> None:
    events = draw_events("periodic", 60, 0)
    training = {"steps": 120, "batch_size": 60, "lr": 0.01}
    solver = {"rtol": 1e-5, "atol": 1e-5}
    model, history = train_rate("periodic", events, events, 0, training, solver)
    assert isinstance(model, RateModel)
    assert history[-1]["error"] < 0.1 < history[0]["error"]
    assert history[-1]["excess"] < 0.25 * history[0]["excess"]
    short = {**training, "steps": 3}
    again = [train_rate("periodic", events, events, seed, short, solver)[0].z0 for seed in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_each_sequence_has_its_own_likelihood() -> None:
    """Of a model with one rate for all, against its rate on a fine grid; sequences of different lengths."""
    events = draw_events("periodic", 4, 1)
    assert len(set(events.lengths.tolist())) > 1
    model = RateModel(3, events.end, **TIGHT).double()
    grid = torch.linspace(0, events.end, 20_001, dtype=torch.float64)
    with torch.no_grad():
        found, rate = model.log_likelihood(events), model.rate(grid).numpy()
    for row, n in enumerate(events.lengths.tolist()):
        logs = np.log(np.interp(events.times[row, :n].numpy(), grid.numpy(), rate)).sum()
        assert float(found[row]) == pytest.approx(logs - np.trapezoid(rate, grid.numpy()), abs=1e-4)


def test_relative_squared_error() -> None:
    """Of curves a tenth too high, half a period out of phase, and right; over whole periods sin² is 1/2."""
    t = torch.linspace(0, 4 * math.pi, 10_001, dtype=torch.float64)
    truth = torch.stack([2 + t.sin(), t.sin(), t.cos()])
    found = relative_squared_error(torch.stack([1.1 * (2 + t.sin()), -t.sin(), t.cos()]), truth, t)
    torch.testing.assert_close(found, torch.tensor([0.01, 4.0, 0.0], dtype=torch.float64), rtol=1e-6, atol=1e-12)


def test_histories_are_of_test_sequences() -> None:
    train, test = draw_events("periodic", 6, 0), draw_events("periodic", 5, 1)
    training = {"steps": 2, "batch_size": 3, "lr": 0.01}
    model, history = train_rate("periodic", train, test, 0, training, {})
    with torch.no_grad():
        excess = (true_log_likelihood("periodic", test) - model.log_likelihood(test)).mean()
    assert history[-1]["excess"] == pytest.approx(float(excess), rel=1e-5)
    pairs, others = draw_oscillators(6, 0.1, 0), draw_oscillators(5, 0.1, 1)
    joint, history = train_joint(pairs, others, 0, training, 0.1, {})
    times = torch.linspace(0, END, 501, dtype=torch.float64)
    found, errors = joint_rates(joint, others, times), []
    for row, phase in enumerate(others.phase):
        truth = 2 + 1.8 * torch.sin(phase + times)
        errors.append(torch.trapezoid((found[row] - truth) ** 2, times) / torch.trapezoid(truth**2, times))
    assert history[-1]["error"] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


def test_joint_model_reads_only_what_was_observed() -> None:
    data = draw_oscillators(5, 0.1, 0)
    events = data.events
    model = JointModel(2, 3, 0.1, rtol=1e-6, atol=1e-6)

    def bound(values: Tensor, times: Tensor) -> Tensor:
        torch.manual_seed(0)
        return model.elbo(values, times, events.lengths, events.mask, events.end)

    first = bound(data.values, events.times)
    padding = ~events.mask
    other = bound(data.values + 7.0 * padding[..., None], torch.where(padding, END, events.times))
    torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(first, bound(data.values + 0.1, events.times))
    torch.manual_seed(0)
    model.use_times = False
    assert not torch.allclose(first, bound(data.values, events.times))
    assert oscillator_rate(data.phase, torch.zeros(5).double()).min() > 0


# Results ---------------------------------------------------------------------------------------------------------

SIZES = {
    "rates": ["decaying", "two bursts"],
    "seeds": [1],
    "sequences": 6,
    "test_sequences": 5,
    "batch_size": 3,
    "lr": 0.01,
    "steps": 2,
    "tolerance": 1e-4,
    "joint_series": 6,
    "joint_test_series": 5,
    "joint_batch_size": 3,
    "joint_steps": 2,
    "joint_noise": 0.1,
    "joint_seeds": [1],
    "study_rate": "decaying",
    "study_seeds": [1],
    "study_steps": 2,
    "device": "cpu",
}
STUDY_SOLVER = {"rtol": 1e-6, "atol": 1e-6}
STUDY = [
    "study/weights-and-data",
    "study/twice-the-steps",
    "study/0.3-of-the-learning-rate",
    "study/small-start",
    "study/bounded",
    "study/bounded-small-start",
]
SEED_1 = ["decaying-1", "two-bursts-1", "joint-1", "true_likelihoods/decaying-1", "true_likelihoods/two-bursts-1"]


def results(folder: Path, **changes: object) -> poisson.Results:
    return poisson.results(Workspace("10_poisson", "quick", folder, folder), **(SIZES | changes))


def test_what_was_computed_is_read_and_a_further_seed_makes_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, keep = [], Store.keep

    def noted(self: Store, function: object, name: str, *rest: object) -> None:
        made.append(name)
        keep(self, function, name, *rest)

    monkeypatch.setattr(Store, "keep", noted)
    first = results(tmp_path)
    assert sorted(made) == sorted(SEED_1 + STUDY)
    made.clear()
    again = results(tmp_path)
    assert not made
    for name in ("rates", "joint", "study"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name), check_exact=True)
    more = results(tmp_path, seeds=[1, 0], joint_seeds=[1, 0])
    assert sorted(made) == sorted(f"{name[:-1]}0" for name in SEED_1)
    assert list(more.models) == [(rate, seed) for rate in SIZES["rates"] for seed in (1, 0)]
    assert more.joint["seed"].tolist() == [1, 0]
    assert more.joint["error"].iloc[0] == first.joint["error"].iloc[0]


def test_errors_are_those_of_the_models_on_test_data(tmp_path: Path) -> None:
    found = results(tmp_path)
    rates = found.rates.set_index("rate")
    for rate in SIZES["rates"]:
        test, model = draw_events(rate, 5, 3), found.models[rate, 1]
        with torch.no_grad():
            excess = (true_log_likelihood(rate, test) - model.log_likelihood(test)).mean()
        assert rates.loc[rate, "error"] == pytest.approx(rate_error(model, rate))
        assert rates.loc[rate, "excess"] == pytest.approx(float(excess), rel=1e-5)
        assert rates.loc[rate, "true"] == -float(true_log_likelihood(rate, test).mean())
    test = draw_oscillators(5, 0.1, 3)
    assert found.joint["error"].iloc[0] == pytest.approx(joint_error(found.joint_model, test))


# Why rates stick -------------------------------------------------------------------------------------------------


def test_many_models_are_trained_as_each_would_be_alone(tmp_path: Path) -> None:
    """By `train_rate`, whose weights and data have one seed; up to the steps of the solvers."""
    cases = [{"rate": "decaying", "weights": seed, "data": seed} for seed in (0, 1)]
    training = {"steps": 3, "lr": 0.01}
    how = {"change": "as it is", "sequences": 5, "training": training, "checkpoints": tmp_path}
    (tmp_path / "rows.csv").write_bytes(stuck_rates.many_run(cases=cases, **how)[".csv"])
    rows = pd.read_csv(tmp_path / "rows.csv")
    for row in rows.itertuples():
        train = draw_events("decaying", 5, 2 * row.weights)
        model, _ = train_rate("decaying", train, train, row.weights, {**training, "batch_size": 5}, STUDY_SOLVER)
        assert row.excess == pytest.approx(stuck_rates.expected_excess(model, "decaying"), rel=1e-3)
    assert rows["excess"].nunique() == 2


def test_stacked_models_have_the_likelihood_of_each() -> None:
    events = [draw_events("periodic", 6, seed) for seed in (0, 1)]
    models = [stuck_rates.changed_model("periodic", seed, "as it is", **STUDY_SOLVER) for seed in (0, 1)]
    many = stuck_rates.ManyRates(models, 10.0)
    found = many.log_likelihood(torch.stack([stuck_rates.on_grid(one, 100) for one in events]).float())
    for own, model, likelihood in zip(events, models, found, strict=True):
        assert float(likelihood) == pytest.approx(float(model.log_likelihood(own).mean()), rel=2e-3)
    with torch.no_grad():
        many.weights[0][1] += 1.0  # of the first parameter, in the second model
    before = [model.z0.clone() for model in models]
    many.unstacked(models)
    torch.testing.assert_close([model.z0.detach() for model in models], [before[0], before[1] + 1.0])


def test_changes_of_rate_models() -> None:
    plain, small, bounded, both = (
        stuck_rates.changed_model("periodic", 3, change) for change in stuck_rates.CHANGES
    )
    torch.manual_seed(3)
    first = RateModel(4, 10.0)
    for own, other in zip(first.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other)
    z = torch.randn(7, 4)
    slopes = [model.process.dynamics.f(torch.zeros(()), z) for model in (plain, small, bounded, both)]
    torch.testing.assert_close(slopes[1], slopes[0] / 10)
    torch.testing.assert_close(slopes[3], slopes[2] / 10)
    far = [float(model.process.dynamics.f(torch.zeros(()), 1e6 * z).abs().max()) for model in (plain, bounded)]
    assert far[0] > 1e4
    assert far[1] < 10
    torch.testing.assert_close(plain.process.rate(z), both.process.rate(z))


def test_events_between_points_count_for_both() -> None:
    events = Events(torch.tensor([[0.5, 2.0], [3.75, 4.0]]).double(), torch.tensor([2, 2]), 4.0)
    expected = torch.tensor([0.25, 0.25, 0.5, 0.125, 0.875]).double()
    torch.testing.assert_close(stuck_rates.on_grid(events, 4), expected)


def test_expected_excess_of_a_constant_rate() -> None:
    """Of a model whose rate is 3 under events of rate 2 for 10 units of time: 10 (2 log(2/3) - 2 + 3)."""
    model = stuck_rates.changed_model("constant", 0, "as it is", **STUDY_SOLVER)
    output = model.process.rate.net[2]
    with torch.no_grad():
        output.weight.zero_()
        output.bias.fill_(math.log(math.expm1(3.0)))
    expected = 10 * (2 * math.log(2 / 3) + 1)
    assert stuck_rates.expected_excess(model, "constant") == pytest.approx(expected, rel=1e-5)


def test_trace_of_a_state_that_stays_and_of_one_that_runs_away() -> None:
    model = stuck_rates.changed_model("periodic", 0, "as it is", **STUDY_SOLVER)
    layers, hidden = model.process.dynamics.f.net, model.process.rate.net[0]
    with torch.no_grad():
        for parameter in layers[2].parameters():
            parameter.zero_()
        layers[2].bias[1] = 5.0  # the second coordinate goes from 0 to 50
        model.z0.copy_(torch.tensor([[-3.0, 0.0, 0.0, 0.0]]))
        hidden.weight.zero_()
        hidden.weight[:, 1] = 1.0
        hidden.bias.zero_()
    found = stuck_rates.trace(model, torch.tensor([0.0, 0.2, 10.0], dtype=torch.float64))
    torch.testing.assert_close(found.reach, torch.tensor([3.0, 2.88, 50.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.slope, torch.tensor([1.0, 1 - math.tanh(1) ** 2, 0.0]), rtol=1e-4, atol=1e-6)


def test_the_study_crosses_weights_and_data_once(tmp_path: Path) -> None:
    found = results(tmp_path, study_seeds=[0, 1]).study.set_index("trial")
    pairs = found.loc[stuck_rates.CROSSED, ["weights", "data"]].to_numpy().tolist()
    assert pairs == [[0, 0], [0, 1], [1, 0], [1, 1]]
    others = found.drop(index=stuck_rates.CROSSED)
    assert (others["weights"] == others["data"]).all()
    counts = others.groupby(level=0).size()
    remedy = stuck_rates.CHANGES[-1]
    assert counts[remedy] == 2 * len(SIZES["rates"])
    assert (counts.drop(remedy) == 2).all()
