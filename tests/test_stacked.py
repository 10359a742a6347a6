"""Several models as one: each does what it does alone, and is trained as it would be alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError, NonFiniteError
from neural_ode.nn import union_of_times
from reproduction.data.spirals import draw_spirals
from reproduction.models.elman import all_states, last_state
from reproduction.models.latent_ode import LatentODE, spiral_latent_ode
from reproduction.models.recognition import BackwardRNN
from reproduction.models.rnn import NextObservationRNN
from reproduction.models.stacked import StackedRNN, max_over_models, stack, unstack
from reproduction.training.together import SCHEDULES, train_together

TIGHT = {"rtol": 1e-11, "atol": 1e-11}
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


def latent_odes(**how: Any) -> list[LatentODE]:
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(spiral_latent_ode(0.1, **how, **TIGHT).double())
    return models


def data(observations: int = 7) -> list[tuple[Tensor, Tensor]]:
    """Values and times for three models, each of four series."""
    drawn = [draw_spirals("example", 4, observations, 0.1, seed, dtype=torch.float64) for seed in range(3)]
    return [(one.values, one.times) for one in drawn]


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("how", [{}, {"layers": 2, "bounded": True, "with_times": False}])
def test_stacked_latent_odes_have_the_bounds_and_gradients_of_each(how: dict[str, Any]) -> None:
    models, series = latent_odes(**how), data()
    stacked = stack(models)
    values, times = (torch.stack(x) for x in zip(*series, strict=True))
    torch.manual_seed(0)
    found = stacked.elbo(values, times)
    assert found.shape == (3, 4)
    of_all = gradients(found.sum(), stacked)
    torch.manual_seed(0)
    samples = torch.randn(3, 4, 4, dtype=torch.float64)
    for k, (model, (value, time)) in enumerate(zip(models, series, strict=True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda x, k=k: samples[k])
            alone = model.elbo(value, time)
        torch.testing.assert_close(found[k], alone, **CLOSE)
        for name, gradient in gradients(alone.sum(), model).items():
            off = (of_all[name][k] - gradient).abs().max() / gradient.abs().max()
            assert off < 1e-4, name


def test_stacked_networks_have_the_likelihoods_and_gradients_of_each() -> None:
    models = [NextObservationRNN(2, 5, with_times=True).double() for _ in range(3)]
    stacked, series = stack(models), data()
    found = stacked.log_likelihood(*(torch.stack(x) for x in zip(*series, strict=True)))
    of_all = gradients(found.sum(), stacked)
    for k, (model, given) in enumerate(zip(models, series, strict=True)):
        alone = model.log_likelihood(*given)
        torch.testing.assert_close(found[k], alone)
        for name, gradient in gradients(alone.sum(), model).items():
            torch.testing.assert_close(of_all[name][k], gradient, msg=name)


def test_unstacked_weights_are_those_that_were_stacked() -> None:
    models = latent_odes(bounded=True)
    weights = stack(models).state_dict()
    for k, model in enumerate(models):
        own = unstack(weights, k)
        assert own.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(own[name], value)


def test_all_states_are_those_of_pytorch() -> None:
    networks = [nn.RNN(3, 5, batch_first=True).double() for _ in range(2)]
    inputs = torch.randn(2, 7, 9, 3, dtype=torch.float64)
    stacked = StackedRNN(networks)
    found = all_states(stacked, inputs)
    for k, network in enumerate(networks):
        expected, last = network(inputs[k])
        torch.testing.assert_close(found[k], expected)
        torch.testing.assert_close(all_states(network, inputs[k]), expected)
        torch.testing.assert_close(last_state(stacked, inputs)[k], last[0])


def test_gradients_of_all_states() -> None:
    """Each of them counts, not only the last one; also when they are differentiated again."""
    network = nn.RNN(2, 3, batch_first=True).double()
    inputs = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, 3, dtype=torch.float64)
    found = []
    for states in (lambda x: network(x)[0], lambda x: all_states(network, x)):
        over = [inputs, *network.parameters()]
        first = torch.autograd.grad((states(inputs) * weights).sum(), over, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), over)
        found.append((*first, *second))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("with_times", [True, False])
def test_a_part_is_encoded_as_the_series_that_it_is(with_times: bool) -> None:
    """From any observation on, the network says what it would say of a series that begins there."""
    network = BackwardRNN(2, 5, 3, with_times).double()
    (values, times), *_ = data()
    first = torch.tensor([0, 3, 6, 2])
    mean, log_variance, part = network.also_from(times, values, first)
    for found, expected in zip((mean, log_variance), network(times, values), strict=True):
        torch.testing.assert_close(found, expected)
    for row, k in enumerate(first.tolist()):
        one = slice(row, row + 1)
        alone, _ = network(times[one, k:] - times[one, k : k + 1], values[one, k:])
        torch.testing.assert_close(part[one], alone)
    stacked = stack([network, BackwardRNN(2, 5, 3, with_times).double()])
    twice = [torch.stack([x, x]) for x in (times, values, first)]
    torch.testing.assert_close(stacked.also_from(*twice)[2][0], part)


def test_length_of_paths() -> None:
    """Of a field with constant speed it is the square of the speed times the time; the states are the same."""
    model = latent_odes()[0]
    with torch.no_grad():
        for parameter in model.dynamics.parameters():
            parameter.zero_()
        model.dynamics.net[-1].bias.copy_(torch.tensor([1.0, 2.0, 0.0, -2.0]))
    start, times = torch.zeros(3, 4, dtype=torch.float64), torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    states, lengths = model.measured_trajectory(start, times)
    torch.testing.assert_close(lengths, 9 * times[:, None].expand(-1, 3))
    torch.testing.assert_close(states, model.trajectory(start, times))


def test_terms_are_those_of_the_bound_and_its_penalties() -> None:
    model, ((values, times), *_) = latent_odes()[0], data()
    union = union_of_times(times, 0.0)
    first = torch.tensor([0, 1, 6, 3])
    torch.manual_seed(0)
    found = model.terms(values, times, union, with_length=True, gap_at=first)
    torch.manual_seed(0)
    torch.testing.assert_close(found.likelihood - 0.3 * found.divergence, model.elbo(values, times, union, 0.3))
    torch.manual_seed(0)
    mean, log_variance, part = model.recognition.also_from(times, values, first)
    start = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    for row, k in enumerate(first.tolist()):
        path = torch.cat([torch.zeros(1, dtype=torch.float64), times[row, k : k + 1]])
        state = model.trajectory(start[row : row + 1], path)[-1, 0] if times[row, k] > 0 else start[row]
        torch.testing.assert_close(found.gap[row], (state - part[row]).square().sum(), **CLOSE)
    torch.testing.assert_close(found.length, model.measured_trajectory(start, union.times)[1][-1], **CLOSE)
    assert model.terms(values, times, union).length is None
    assert model.terms(values, times, union).gap is None


def test_a_step_serves_each_model() -> None:
    errors = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    assert max_over_models(errors) == pytest.approx((25 / 2) ** 0.5)


# Training --------------------------------------------------------------------------------------------------------


def lines() -> list[nn.Linear]:
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        found.append(nn.Linear(2, 1).double())
    return found


def fit_lines(models: list[nn.Linear], folder: Path | None = None, scale: float = 1.0, **changes: Any) -> Any:
    """Each to a plane of its own; by batches that depend on the step."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(step)
        x = torch.randn(3, 8, 2, generator=random, dtype=torch.float64)[: len(models)]
        slopes = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.0, 4.0]], dtype=torch.float64)[: len(models)]
        return x, scale * (x * slopes[:, None]).sum(-1, keepdim=True)

    def loss(net: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        return (net(given[0]) - given[1]).square().mean((1, 2))

    training = {"steps": 12, "lr": 0.1, **changes}
    return train_together(
        models,
        loss,
        batch,
        lambda net, k: {"first": float(net.weight[0, 0]), "number": k},
        training,
        {},
        Path(__file__),
        "lines",
        None if folder is None else folder / "checkpoint.pt",
        evaluations=4,
    )


def test_each_is_trained_as_it_would_be_alone() -> None:
    """Adam works on every number alone."""
    together, alone = lines(), lines()[:1]
    histories, (history,) = fit_lines(together), fit_lines(alone)
    torch.testing.assert_close(together[0].weight, alone[0].weight)
    assert len(histories) == 3
    assert [row["first"] for row in histories[0]] == pytest.approx([row["first"] for row in history])
    assert [row["loss"] for row in histories[0]] == pytest.approx([row["loss"] for row in history])
    assert [[row["number"] for row in rows] for rows in histories] == [[0] * 4, [1] * 4, [2] * 4]
    assert list(histories[0][0]) == ["epoch", "loss", "first", "number", "nfe_forward", "nfe_backward", "seconds"]
    assert not together[0].training


def test_a_killed_training_of_several_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lines()
    expected = fit_lines(whole)
    monkeypatch.setattr("reproduction.training.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    steps, step = 0, torch.optim.Adam.step

    def dies(self: torch.optim.Adam, *given: Any, **more: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt
        return step(self, *given, **more)

    monkeypatch.setattr(torch.optim.Adam, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        fit_lines(lines(), tmp_path)
    resumed = lines()
    found = fit_lines(resumed, tmp_path)
    assert steps == 8 + 5
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a.weight, b.weight)
    for a, b in zip(expected, found, strict=True):
        for row, other in zip(a, b, strict=True):
            assert {**row, "seconds": 0} == {**other, "seconds": 0}


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    with pytest.raises(
        NonFiniteError, match=r"a loss of lines is not finite at step 0, .*: lower the learning rate"
    ):
        fit_lines(lines(), scale=1e200)


def test_schedules() -> None:
    assert [SCHEDULES["cosine"](x) for x in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0], abs=1e-6)
    assert SCHEDULES["constant"](0.9) == 1
    with pytest.raises(InvalidArgumentError, match="schedule must be one of cosine, constant, got 'stairs'"):
        fit_lines(lines(), schedule="stairs")
    constant, cosine = lines(), lines()
    fit_lines(constant, schedule="constant")
    fit_lines(cosine)
    assert not torch.equal(constant[0].weight, cosine[0].weight)
