"""The runs of Table 2: what they keep can be read again, and settings differ in what they say."""

from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from neural_ode.errors import UnknownNameError
from reproduction.experiments import spirals
from reproduction.figures.spirals import PARTS, draw_latent_ode, draw_prediction
from reproduction.measure.prediction import latent_ode_errors, latent_ode_predictions, rnn_errors
from reproduction.models.latent_ode import LatentODE
from reproduction.models.rnn import NextObservationRNN
from reproduction.training.spirals import train_latent_ode, train_rnn
from reproduction.workspace import MissingResultError, Workspace

TRAINING = {"steps": 4, "batch_size": 10, "lr": 1e-2, "kl_warmup": 2, "noise_factor": 2.0}
SERIES = (20, 10)


def test_a_latent_ode_is_trained_kept_and_read_again(tmp_path: Path) -> None:
    work = Workspace("09_extrapolation", "quick", tmp_path / "elsewhere", tmp_path)
    folders = (tmp_path / "checkpoints", tmp_path / "runs" / "quick" / "08_spirals")
    found = spirals.latent_ode_run(spirals.BASE, 30, 1, SERIES, TRAINING, folders)
    model = spirals.trained_latent_ode(work, 30, 1)
    test = spirals.spirals_for(spirals.BASE, 10, 30, 1, spirals.TEST)
    assert latent_ode_errors(model, test) == {name: found[name] for name in ("inside", "beyond", "noisy")}
    with pytest.raises(MissingResultError, match=r"no base-50-1\.safetensors of 08_spirals.*dvc repro spirals"):
        spirals.trained_latent_ode(work, 50, 1)
    again = spirals.latent_ode_run(spirals.BASE, 30, 1, SERIES, TRAINING, (tmp_path / "new", tmp_path / "new"))
    assert again["beyond"] == found["beyond"]
    other = spirals.latent_ode_run(spirals.BASE, 30, 2, SERIES, TRAINING, (tmp_path / "new", tmp_path / "new"))
    assert other["beyond"] != found["beyond"]


def test_the_likelihood_can_assume_more_noise_than_the_data_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, train = [], spirals.train_latent_ode

    def recorded(*given, **more):
        trained = train(*given, **more)
        models.append(trained[0])
        return trained

    monkeypatch.setattr(spirals, "train_latent_ode", recorded)
    for name in ("base", "noise 0.3"):
        setting = spirals.VARIANTS.get(name, spirals.BASE)
        spirals.latent_ode_run(setting, 30, 1, SERIES, TRAINING, (tmp_path, tmp_path), name)
    assert [model.noise for model in models] == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize("kind", spirals.RNNS)
def test_a_network_is_trained_kept_and_read_again(kind: str, tmp_path: Path) -> None:
    work = Workspace("09_extrapolation", "quick", tmp_path, tmp_path)
    folders = (tmp_path / "checkpoints", tmp_path / "runs" / "quick" / "08_spirals")
    found = spirals.rnn_run(kind, 30, 1, SERIES, TRAINING, folders)
    model = spirals.trained_rnn(work, kind, 30, 1)
    test = spirals.spirals_for(spirals.BASE, 10, 30, 1, spirals.TEST)
    assert rnn_errors(model, test).items() <= found.items()
    assert ("point by point" in found) == spirals.RNNS[kind]
    with pytest.raises(UnknownNameError, match="unknown recurrent network 'RNM', did you mean 'RNN'"):
        spirals.rnn_run("RNM", 30, 1, SERIES, TRAINING, (tmp_path, tmp_path))


def test_training_makes_observations_more_likely() -> None:
    """Both kinds of models, beside themselves before it. The errors are those of the validation series."""
    train, validation = (spirals.spirals_for(spirals.BASE, n, 30, 0, split) for n, split in ((20, 1), (10, 2)))
    training = {"steps": 40, "batch_size": 20, "lr": 1e-2, "kl_warmup": 0}
    short = training | {"lr": 0.0, "steps": 1}
    solver = {"rtol": 1e-3, "atol": 1e-3}

    @torch.no_grad()
    def bound(model: LatentODE | NextObservationRNN) -> float:
        torch.manual_seed(0)
        of_series = model.elbo if isinstance(model, LatentODE) else model.log_likelihood
        return float(of_series(train.values, train.times).mean())

    (before, _), (after, history) = (
        train_latent_ode(train, validation, 0, how, spirals.BASE.model, solver) for how in (short, training)
    )
    assert bound(after) > bound(before) + 100
    errors = latent_ode_errors(after, validation)
    assert {name: history[-1][name] for name in errors} == pytest.approx(errors)
    (before, _), (after, history) = (train_rnn(train, validation, 0, how, True) for how in (short, training))
    assert bound(after) > bound(before) + 10
    errors = rnn_errors(after, validation)
    assert {name: history[-1][name] for name in errors} == pytest.approx(errors)


@pytest.mark.parametrize(("warmup", "weights"), [(4, [0.25, 0.5, 0.75, 1.0, 1.0]), (0, [1.0] * 5)])
def test_weight_of_the_divergence(warmup: int, weights: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows from step to step, and then stays."""
    found = []

    def fit(net, loss, batch, *_) -> list:
        found.extend(batch(step)[1] for step in range(5))
        return []

    monkeypatch.setattr("reproduction.training.spirals.fit_with_adam", fit)
    data = spirals.spirals_for(spirals.BASE, 20, 30, 0, spirals.TRAIN)
    train_rnn(data, data, 0, TRAINING | {"kl_warmup": warmup}, True)
    assert found == weights


def test_a_variant_differs_in_one_respect() -> None:
    for name, setting in spirals.VARIANTS.items():
        changed = {key for key, value in asdict(setting).items() if value != asdict(spirals.BASE)[key]}
        expected = {"tolerance", "double"} if name == "tolerance 1.5e-8" else {next(iter(changed))}
        assert changed == expected, name


def test_splits_share_no_series_and_training_reaches_what_is_predicted() -> None:
    splits = {split: spirals.spirals_for(spirals.BASE, 500, 30, 0, split) for split in (0, 1, 2)}
    assert splits[spirals.TRAIN].start.max() > 200 >= splits[spirals.TEST].start.max()
    assert not torch.equal(splits[1].noisy, splits[2].noisy)
    anywhere = spirals.spirals_for(spirals.BASE, 500, 30, 0, spirals.TEST, inside=False)
    assert anywhere.start.max() > 200


def test_figures_hold_what_they_say() -> None:
    data = spirals.spirals_for(spirals.BASE, 2, 30, 0, spirals.TEST)
    figure, axes = plt.subplots()
    draw_prediction(axes, data, 0, data.truth[0, :100], data.truth[0, 100:], data.truth[:1])
    colors = {line.get_label(): line.get_color() for line in axes.lines}
    assert colors["prediction in the window"] == PARTS["inside"]
    assert colors["prediction beyond it"] == PARTS["beyond"]
    assert {"truth", "posterior samples", "observations"} < set(colors)
    plt.close(figure)
    figure = draw_latent_ode()
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    for part in ("$z_{t_0}$", "$x_{t_N}$", "ODE solve", "decoder", "extrapolated"):
        assert part in texts
    plt.close(figure)


def test_predictions_of_a_series_are_the_same_alone_and_in_a_batch() -> None:
    """The steps of the solver are in common, so up to its tolerance."""
    torch.manual_seed(0)
    data = spirals.spirals_for(spirals.BASE, 6, 30, 0, spirals.TEST)
    model = spirals.spiral_latent_ode(**spirals.BASE.model, rtol=1e-6, atol=1e-6)
    together = latent_ode_predictions(model, data)
    alone = torch.cat([latent_ode_predictions(model, data.rows(slice(k, k + 1))) for k in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
