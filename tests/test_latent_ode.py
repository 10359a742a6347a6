"""Spirals, the latent ODE and the recurrent networks, against what can be known without them."""

import math

import pytest
import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.errors import InvalidArgumentError, UnknownNameError
from neural_ode.nn import union_of_times
from reproduction.data.batches import Minibatches
from reproduction.data.spirals import RECIPES, draw_spirals
from reproduction.measure.prediction import latent_ode_errors, rnn_errors
from reproduction.models.gaussian import kl_to_standard_normal, normal_log_density, sample_normal
from reproduction.models.latent_ode import LatentODE, spiral_latent_ode
from reproduction.models.recognition import BackwardRNN
from reproduction.models.rnn import NextObservationRNN

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


# Spirals ---------------------------------------------------------------------------------------------------------


def turning(points: Tensor) -> Tensor:
    """Sign of the curvature: positive for counter-clockwise."""
    a, b = points[:, 1:-1] - points[:, :-2], points[:, 2:] - points[:, 1:-1]
    return (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sign()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_second_spiral_turns_clockwise(recipe: str) -> None:
    data = draw_spirals(recipe, 40, 30, 0.0, 0, windows="inside", dtype=torch.float64)
    assert data.clockwise.sum() == 20
    expected = torch.where(data.clockwise, -1.0, 1.0).double()[:, None]
    assert torch.equal(turning(data.truth), expected.expand(-1, 198))


def test_radii_of_the_example() -> None:
    data = draw_spirals("example", 40, 100, 0.0, 0, dtype=torch.float64)
    angle = (data.start[:, None] + torch.arange(200)).double() * (6 * math.pi / 499)
    for clockwise, centre, radius in ((False, 5.0, 0.3 * angle), (True, -5.0, 15 / (6 * math.pi + 1 - angle))):
        rows = data.clockwise == clockwise
        away = (data.truth[rows] - torch.tensor([centre, 0.0], dtype=torch.float64)).norm(dim=-1)
        torch.testing.assert_close(away, radius[rows])


def test_mirrored_spirals_mirror_each_other() -> None:
    kind, angle = RECIPES["mirrored"], torch.linspace(0, 15, 50, dtype=torch.float64)
    torch.testing.assert_close(
        kind.clockwise(angle), kind.counter_clockwise(angle) * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    )


def test_windows_whose_points_beyond_are_trained_on() -> None:
    everywhere, inside = (
        draw_spirals("example", 4000, 30, 0.1, 0, windows=x).start for x in ("anywhere", "inside")
    )
    assert (everywhere.min(), everywhere.max()) == (100, 300)
    assert (inside.min(), inside.max()) == (100, 200)
    assert inside.max() + 200 == everywhere.max() + 100


def test_observations_are_distinct_points_of_the_window_and_each_point_is_equally_likely() -> None:
    data = draw_spirals("example", 2000, 30, 0.1, 0)
    assert (data.observed.diff(dim=1) > 0).all()
    share = torch.bincount(data.observed.flatten(), minlength=100) / 2000
    assert len(share) == 100
    assert (share - 0.3).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 2000)
    everything = draw_spirals("example", 3, 100, 0.1, 0)
    assert torch.equal(everything.observed, torch.arange(100).expand(3, -1))
    torch.testing.assert_close(everything.values, everything.noisy[:, :100])


def test_noise_has_the_asked_for_size() -> None:
    data = draw_spirals("example", 500, 30, 0.3, 0)
    assert float((data.noisy - data.truth).std()) == pytest.approx(0.3, rel=0.01)
    quiet = draw_spirals("example", 500, 30, 0.0, 0)
    assert torch.equal(quiet.noisy, quiet.truth)


def test_data_are_a_function_of_the_seed() -> None:
    a, b, c = (draw_spirals("example", 10, 30, 0.1, seed) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a[2:], b[2:], strict=True))
    assert not torch.equal(a.noisy, c.noisy)
    assert not torch.equal(a.observed, c.observed)
    rows = a.rows(torch.tensor([3, 1]))
    assert torch.equal(rows.values, a.values[[3, 1]])
    assert torch.equal(rows.times, a.times[[3, 1]])


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match="unknown recipe 'exampel', did you mean 'example'"):
        draw_spirals("exampel", 1, 1, 0.1, 0)
    with pytest.raises(InvalidArgumentError, match="observations must be 1 to 100 of the window, got 101"):
        draw_spirals("example", 1, 101, 0.1, 0)
    with pytest.raises(InvalidArgumentError, match=r"noise must not be negative, got -0\.1"):
        draw_spirals("example", 1, 1, -0.1, 0)
    with pytest.raises(InvalidArgumentError, match="series must be positive, got 0"):
        draw_spirals("example", 0, 1, 0.1, 0)
    with pytest.raises(InvalidArgumentError, match="noise must be positive, got 0"):
        spiral_latent_ode(0)
    with pytest.raises(InvalidArgumentError, match="layers must be 1 or more, got 0"):
        spiral_latent_ode(1.0, layers=0)
    with pytest.raises(InvalidArgumentError, match="batch size 5 with 4 examples"):
        Minibatches(4, 5, 0)


def test_minibatches_visit_everything_once_an_epoch() -> None:
    batches = Minibatches(10, 5, 0)
    first, second = ([batches(2 * epoch + k) for k in (0, 1)] for epoch in (0, 1))
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(batches(1), first[1])
    assert not torch.equal(Minibatches(10, 5, 1)(0), first[0])


# Distributions ---------------------------------------------------------------------------------------------------


def test_kl_and_density_against_torch_distributions_and_monte_carlo() -> None:
    mean, log_variance = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    p = torch.distributions.Normal(torch.zeros(4).double(), torch.ones(4).double())
    kl = kl_to_standard_normal(mean, log_variance)
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, p).sum(-1))
    x = torch.stack([sample_normal(mean, log_variance) for _ in range(20000)])
    torch.testing.assert_close(normal_log_density(x, mean, log_variance), q.log_prob(x))
    ratios = (q.log_prob(x) - p.log_prob(x)).sum(-1)
    assert ((ratios.mean(0) - kl).abs() < 5 * ratios.std(0) / 20000**0.5).all()


class Posterior(nn.Module):
    """A fixed normal distribution, whatever is observed."""

    def __init__(self, mean: Tensor, variance: Tensor):
        super().__init__()
        self.mean, self.log_variance = mean, variance.log()

    def forward(self, times: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean, self.log_variance


class Decay(nn.Module):
    """`dz/dt = rates · z`, so `z(t) = exp(rates t) z(0)`."""

    def __init__(self, rates: Tensor):
        super().__init__()
        self.rates = nn.Parameter(rates)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.rates * z


def test_elbo_is_the_log_likelihood_at_the_exact_posterior_and_below_it_elsewhere() -> None:
    """Linear dynamics of independent coordinates, observed with normal noise: all in closed form."""
    rates, noise = torch.tensor([-0.5, 0.2], dtype=torch.float64), 0.4
    times = torch.tensor([[0.3, 0.9, 2.0], [0.1, 1.4, 1.5]], dtype=torch.float64)
    values = torch.randn(2, 3, 2, dtype=torch.float64)
    gains = (rates * times[..., None]).exp()
    precision = 1 + (gains.square()).sum(1) / noise**2
    mean, variance = (gains * values).sum(1) / noise**2 / precision, 1 / precision
    exact = torch.zeros(2, dtype=torch.float64)
    for series in range(2):
        for k in range(2):
            g = gains[series, :, k]
            covariance = g[:, None] * g + noise**2 * torch.eye(3, dtype=torch.float64)
            normal = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance)
            exact[series] += normal.log_prob(values[series, :, k])

    def bounds(mean: Tensor, variance: Tensor) -> Tensor:
        model = LatentODE(Posterior(mean, variance), Decay(rates), nn.Identity(), noise, rtol=1e-8, atol=1e-8)
        return torch.stack([model.elbo(values, times) for _ in range(200)])

    # With the exact posterior, log p(x, z) - log q(z) is the same for every z; only the analytic KL varies.
    found = bounds(mean, variance)
    error = found.std(0) / 200**0.5
    assert ((found.mean(0) - exact).abs() < 5 * error).all()
    for wrong in (bounds(mean + 0.6, variance), bounds(mean, 4 * variance)):
        assert (wrong.mean(0) + 5 * wrong.std(0) / 200**0.5 < exact).all()
    sharp = bounds(mean, variance * 1e-6).mean(0)
    assert (sharp < exact - 1).all()


class Smooth(nn.Module):
    """Dynamics without the kinks of ELU's derivative, at which gradients converge more slowly than states."""

    def __init__(self, latent: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent, 8), nn.Tanh(), nn.Linear(8, latent)).double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


def test_elbo_gradients_against_finite_differences() -> None:
    data = draw_spirals("example", 3, 5, 0.1, 0, dtype=torch.float64)
    model = spiral_latent_ode(0.5, **TIGHT).double()
    model.dynamics = Smooth(4)
    values, times = data.values, data.times

    def loss() -> Tensor:
        torch.manual_seed(3)
        return model.elbo(values, times, kl_weight=0.7).mean()

    loss().backward()
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        found, ends = (parameter.grad * direction).sum(), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-5 * direction)
                ends.append(loss())
                parameter.sub_(sign * 1e-5 * direction)
        difference = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


# One solve for different times -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"gradient": "recursive_checkpoint"}], ids=["direct", "recursive_checkpoint"])
def test_a_batch_with_different_times_is_solved_as_separate_series_would_be(how: dict) -> None:
    f = Smooth(3)
    z0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    times = (3 * torch.rand(4, 6, dtype=torch.float64)).sort(dim=1).values
    times[0, 0], times[1] = 0.0, times[2]  # the start itself, and times in common
    union = union_of_times(times, 0.0)
    assert len(union.times) == 1 + 5 + 6 + 6
    weights = torch.randn(4, 6, 3, dtype=torch.float64)
    together = union.pick(solve(f, z0, union.times, **TIGHT, **how).y)
    separate = []
    for start, own in zip(z0, times, strict=True):
        wanted = own if own[0] == 0 else torch.cat([own.new_zeros(1), own])
        separate.append(solve(f, start, wanted, **TIGHT).y[-6:])
    apart = torch.stack(separate)
    torch.testing.assert_close(together, apart, rtol=1e-7, atol=1e-7)
    inputs = [z0, *f.parameters()]
    gradients = [torch.autograd.grad((x * weights).sum(), inputs) for x in (together, apart)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_unions_take_further_times_and_repeated_ones() -> None:
    union = union_of_times(torch.tensor([[2.0, 1.0, 1.0]]), 0.0, 5.0)
    assert union.times.tolist() == [0, 1, 2, 5]
    assert union.place.tolist() == [[2, 1, 1]]
    with pytest.raises(InvalidArgumentError, match=r"must not lie before the start 0\.0, got -1\.0"):
        union_of_times(torch.tensor([[-1.0]]), 0.0)
    with pytest.raises(InvalidArgumentError, match=r"shape \(series, m\), got \(3,\)"):
        union_of_times(torch.ones(3), 0.0)


def test_series_with_the_same_times_share_one_row_of_places() -> None:
    f = Smooth(3)
    z0 = torch.randn(4, 3, dtype=torch.float64)
    weights = torch.randn(4, 2, 3, dtype=torch.float64)
    for row in ([0.5, 2.0], [0.0, 0.5], [2.0, 0.5], [1.0, 1.0]):
        union = union_of_times(torch.tensor(row, dtype=torch.float64).expand(4, 2), 0.0, 1.5)
        assert union.place.stride(0) == 0
        states = solve(f, z0, union.times, **TIGHT).y.detach().requires_grad_()
        picked = union.pick(states)
        apart = union._replace(place=union.place.contiguous()).pick(states)
        assert torch.equal(picked, apart)
        assert picked.shape == (4, 2, 3)
        gradients = [torch.autograd.grad((x * weights).sum(), states)[0] for x in (picked, apart)]
        torch.testing.assert_close(*gradients)
    assert union_of_times(torch.zeros(4, 0), 0.0).pick(torch.zeros(1, 4, 3)).shape == (4, 0, 3)


# Recurrent networks ----------------------------------------------------------------------------------------------


def test_recognition_reads_backwards_with_the_gaps() -> None:
    """Against the recurrence written out: from the last observation to the first, one at a time."""
    net = BackwardRNN(2, 5, 3).double()
    times = torch.tensor([[0.5, 0.7, 1.5]], dtype=torch.float64)
    values = torch.randn(1, 3, 2, dtype=torch.float64)
    hidden = torch.zeros(5, dtype=torch.float64)
    r = net.rnn
    for x, gap in ((values[0, 2], 0.8), (values[0, 1], 0.2), (values[0, 0], 0.5)):
        inputs = torch.cat([x, torch.tensor([gap], dtype=torch.float64)])
        hidden = torch.tanh(r.weight_ih_l0 @ inputs + r.bias_ih_l0 + r.weight_hh_l0 @ hidden + r.bias_hh_l0)
    expected = net.out(hidden)
    mean, log_variance = net(times, values)
    torch.testing.assert_close(torch.cat([mean[0], log_variance[0]]), expected)


def test_recognition_without_times_does_not_see_them() -> None:
    times, values = torch.rand(2, 4).sort(dim=1).values, torch.randn(2, 4, 2)
    for with_times in (True, False):
        net = BackwardRNN(2, 5, 3, with_times)
        assert torch.equal(net(times, values)[0], net(2 * times, values)[0]) != with_times


def test_recognition_of_padded_series_is_that_of_the_series_alone() -> None:
    net = BackwardRNN(2, 5, 3)
    times, values = torch.rand(3, 6).sort(dim=1).values, torch.randn(3, 6, 2)
    lengths = torch.tensor([2, 6, 1])
    together = net(times, values, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone = net(times[row : row + 1, :n], values[row : row + 1, :n])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[row], b[0])
    with pytest.raises(InvalidArgumentError, match=r"lengths must be 1 to 6, got \[0, 1, 1\]"):
        net(times, values, torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("with_times", [True, False])
def test_predictions_see_nothing_of_the_future(with_times: bool) -> None:
    net = NextObservationRNN(2, 5, with_times)
    times, values = torch.rand(2, 6).sort(dim=1).values, torch.randn(2, 6, 2, requires_grad=True)
    mean, log_variance = net(values, times)
    for k in range(5):
        (seen,) = torch.autograd.grad((mean + log_variance)[:, k].sum(), values, retain_graph=True)
        touched = seen.abs().sum((0, 2)) > 0
        assert touched.tolist() == [True] * (k + 1) + [False] * (5 - k)


@pytest.mark.parametrize("with_times", [True, False])
@pytest.mark.parametrize("point_by_point", [True, False])
def test_extrapolation_feeds_on_its_own_output(with_times: bool, point_by_point: bool) -> None:
    """Predicting a point is the same as predicting one step ahead with the earlier predictions as observations."""
    net = NextObservationRNN(2, 5, with_times)
    times = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(3, -1)
    values = torch.randn(3, 4, 2)
    wanted = torch.tensor([4.0, 5.0, 6.0])
    if point_by_point and not with_times:
        with pytest.raises(InvalidArgumentError, match="point_by_point=True needs a network with times"):
            net.extrapolate(values, times, wanted, point_by_point=True)
        return
    ahead = net.extrapolate(values, times, wanted, point_by_point)
    series = torch.cat([values, ahead], dim=1)
    mean, _ = net(series, torch.arange(7.0).expand(3, -1))
    torch.testing.assert_close(mean[:, 3:], ahead)
    torch.testing.assert_close(net.extrapolate(values, times, wanted[:1], point_by_point), ahead[:, :1])


@pytest.mark.parametrize("with_times", [True, False])
def test_steps_last_the_mean_time_between_observations(with_times: bool) -> None:
    net = NextObservationRNN(2, 5, with_times)
    times, values = torch.tensor([[0.0, 1.0, 4.0]]), torch.randn(1, 3, 2)
    ahead = net.extrapolate(values, times, torch.tensor([5.0, 6.0, 7.0, 8.0]))
    nodes = net.extrapolate(values, times, torch.tensor([6.0, 8.0]))
    torch.testing.assert_close(ahead[:, [1, 3]], nodes)
    torch.testing.assert_close(ahead[:, 0], (values[:, -1] + nodes[:, 0]) / 2)
    torch.testing.assert_close(ahead[:, 2], nodes.mean(1))
    with pytest.raises(InvalidArgumentError, match=r"wanted times must be later than observations, got 4\.0"):
        net.extrapolate(values, times, torch.tensor([4.0, 5.0]))
    with pytest.raises(InvalidArgumentError, match="takes two, got 1"):
        net(values[:, :1], times[:, :1])


def test_a_network_with_times_steps_to_the_wanted_points() -> None:
    """Uneven points, one step each: the gaps that it is given are theirs."""
    net = NextObservationRNN(2, 5, with_times=True)
    times, values = torch.tensor([[0.0, 1.0]]), torch.randn(1, 2, 2)
    wanted = torch.tensor([1.3, 2.0])
    ahead = net.extrapolate(values, times, wanted, point_by_point=True)
    mean, _ = net(torch.cat([values, ahead], dim=1), torch.cat([times, wanted[None]], dim=1))
    torch.testing.assert_close(mean[:, 1:], ahead)


def test_errors_of_predictions_that_are_known() -> None:
    """A model that knows the truth makes no error, and against noisy points the noise."""
    data = draw_spirals("example", 60, 30, 0.2, 0, dtype=torch.float64)

    class Oracle(LatentODE):
        def predict(self, z0: Tensor, grid: Tensor) -> Tensor:
            return data.truth + torch.where(torch.arange(200) < 100, 0.5, 0.0)[:, None]

    posterior = Posterior(torch.zeros(60, 4), torch.ones(60, 4))
    found = latent_ode_errors(Oracle(posterior, nn.Identity(), nn.Identity(), 0.2), data)
    assert found["inside"] == pytest.approx(0.5)
    assert found["beyond"] == 0
    assert found["noisy"] == pytest.approx(0.2, rel=0.05)

    class Persistent(NextObservationRNN):
        """Expects what it saw last."""

        def forward(self, values: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
            return values[:, :-1], torch.zeros_like(values[:, :-1])

        def _step(self, values: Tensor, gaps: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return values, torch.zeros_like(values), torch.zeros(())

    errors = rnn_errors(Persistent(2, 5, with_times=True), data)
    last = data.values[:, -1:]
    expected = float((last - data.truth[:, 100:]).square().mean().sqrt())
    assert errors["beyond"] == pytest.approx(expected)
    assert errors["point by point"] == pytest.approx(expected)
    seen = torch.cat([data.observed, data.observed + 100], dim=1)[..., None]
    points = data.noisy.take_along_dim(seen, 1)
    before, after = points[:, 29:-1], points[:, 30:]
    assert errors["one step, noisy"] == pytest.approx(float((before - after).square().mean().sqrt()))
    truth = data.truth.take_along_dim(seen, 1)[:, 30:]
    assert errors["one step"] == pytest.approx(float((before - truth).square().mean().sqrt()))


def test_rnn_likelihood_against_torch_distributions() -> None:
    net = NextObservationRNN(2, 5, with_times=True)
    times, values = torch.rand(3, 4).sort(dim=1).values, torch.randn(3, 4, 2)
    mean, log_variance = net(values, times)
    expected = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(values[:, 1:]).sum((1, 2))
    torch.testing.assert_close(net.log_likelihood(values, times), expected)
