"""The runs of Table 2 and of the figures after it: what they keep is read again, and settings say what they do."""

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from neural_ode.errors import UnknownNameError
from reproduction.experiments import extrapolation, latent_paths, spirals
from reproduction.experiments.latent_space import FINE, TENTH, encoded, way, widest
from reproduction.figures.spirals import (
    PARTS,
    covered_curve,
    draw_latent_ode,
    draw_prediction,
    draw_way,
    share_frame,
    true_curve,
)
from reproduction.measure.curves import largest_share, linear_accuracy, sign_changes, signed_area
from reproduction.measure.prediction import latent_ode_errors, latent_ode_predictions, rnn_errors
from reproduction.models.latent_ode import LatentODE, spiral_latent_ode
from reproduction.models.rnn import NextObservationRNN
from reproduction.results import Store
from reproduction.training.spirals import (
    BASE,
    TEST,
    TRAIN,
    VALIDATION,
    latent_ode_trial,
    latent_odes_for,
    load_latent_ode,
    load_rnn,
    rnn_trial,
    spirals_for,
    train_latent_odes,
    train_rnns,
)
from reproduction.workspace import MissingResultError, Workspace

TRAINING = {"steps": 4, "batch_size": 10, "lr": 1e-2, "kl_warmup": 2, "noise_factor": 2.0}
RUN = {"observations": 30, "series": 20, "validation_series": 10, "training": TRAINING, "device": "cpu"}
TABLE = {
    "observations": [30],
    "seeds": [1],
    "rnn_seeds": [1],
    "train_series": 20,
    "test_series": 10,
    "batch_size": 10,
    "lr": 1e-2,
    "steps": 4,
    "rnn_steps": 3,
    "rnn_lengths": [2],
    "kl_warmup": 0,
    "noise_factor": 2.0,
    "compiled": False,
    "recipes": {"latent ODE": [{}, {"lr": 3e-2}], "RNN": [{"lr": 1e30}, {}], "RNN with times": [{}]},
    "search_seeds": [7, 8],
    "search_steps": 2,
    "variants": ["double precision"],
    "schedules": {"as it is": {"noise_factor": 2.0}},
    "variant_observations": 30,
    "variant_seeds": [1],
    "variant_steps": 2,
    "device": "cpu",
}
FIGURES = {"observations": [40, 30], "series": 12, "data_seed": 3, "device": "cpu", "rnn_seeds": [0, 1]}
FIGURES["centred_seeds"] = [0, 1]
CENTRED = latent_paths.REMEDIES["centred spirals"]


PATHS = {
    "seeds": [0, 1],
    "remedy_observations": {},
    "remedy_seeds": [0, 1],
    "steps": 3,
    "search_seeds": [7],
    "search_steps": 2,
    "search_observations": 30,
    "train_series": 20,
    "test_series": 10,
    "device": "cpu",
}


def work(folder: Path, notebook: str = "08_spirals") -> Workspace:
    return Workspace(notebook, "quick", folder, folder)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were made, in order."""
    names, keep = [], Store.keep

    def noted(self: Store, function: Any, name: str, *rest: Any) -> None:
        names.append(name)
        keep(self, function, name, *rest)

    monkeypatch.setattr(Store, "keep", noted)
    return names


def test_what_was_computed_is_read_and_a_further_seed_makes_its_runs(tmp_path: Path, made: list[str]) -> None:
    first = spirals.results(work(tmp_path), **TABLE)
    models = ["base-30-1", "RNN-30-1", "RNN-with-times-30-1"]
    varied = [f"variants/{name}-30-1" for name in ("base", "double-precision", "as-it-is")]
    varied += ["lengths/RNN-2-30-1"]
    trials = ["latent-ODE-unchanged", "latent-ODE-lr-0.03", "RNN-lr-1e+30", "RNN-unchanged"]
    expected = {*models, *varied, *(f"errors/{name}" for name in models + varied)}
    assert set(made) == expected | {f"search/{name}" for name in trials}
    assert len(made) == len(set(made))
    made.clear()
    again = spirals.results(work(tmp_path), **TABLE)
    assert not made
    for name in ("errors", "lengths", "variants", "trials"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name), check_exact=True)
    assert again.chosen == first.chosen
    more = spirals.results(work(tmp_path), **{**TABLE, "seeds": [1, 12]})
    assert set(made) == {"base-30-12", "errors/base-30-12"}
    assert more.errors.query("seed == 1").reset_index(drop=True).equals(first.errors)
    assert not set(more.errors.query("seed == 12")["beyond"]) & set(first.errors["beyond"])


def test_seeds_of_the_same_ten_are_trained_together(tmp_path: Path, made: list[str]) -> None:
    """The steps of the solver are in common, so the settings of each say with whom it was trained."""
    alone = {**TABLE, "recipes": {"latent ODE": [{}]}, "variants": [], "schedules": {}}
    first = spirals.results(work(tmp_path), **{**alone, "seeds": [11, 1, 2]})
    assert list(first.errors["seed"]) == [11, 1, 2]
    folder = tmp_path / "results" / "quick" / "08_spirals"
    records = json.loads((folder / "provenance.json").read_text())
    together = {name: record["settings"].get("together") for name, record in records.items()}
    assert (together["base-30-1"], together["base-30-2"], together["base-30-11"]) == ([1, 2], [1, 2], [11])
    made.clear()
    spirals.results(work(tmp_path), **{**alone, "seeds": [11, 1, 2, 3]})
    assert set(made) == {f"{kind}base-30-{seed}" for kind in ("", "errors/") for seed in (1, 2, 3)}


def test_errors_are_those_of_the_weights_on_test_series(tmp_path: Path) -> None:
    found = spirals.results(work(tmp_path), **TABLE)
    errors = found.errors.set_index("model").loc
    folder = tmp_path / "results" / "quick" / "08_spirals"
    test, *others = (spirals_for(BASE, 10, 30, 1, TEST, where) for where in ("inside", "anywhere", "outside"))
    model = load_latent_ode(BASE, folder / "base-30-1.safetensors")
    for name, value in latent_ode_errors(model, test).items():
        assert errors["latent ODE", name] == value
    for where, data in zip(("anywhere", "outside"), others, strict=True):
        assert errors["latent ODE", where] == latent_ode_errors(model, data)["beyond"]
    for kind, with_times in spirals.RNNS.items():
        network = load_rnn(with_times, folder / f"{kind.replace(' ', '-')}-30-1.safetensors")
        for name, value in rnn_errors(network, test).items():
            assert errors[kind, name] == value
        assert math.isnan(errors[kind, "point by point"]) != with_times
    history = pd.read_csv(folder / "base-30-1.csv").iloc[-1]
    assert errors["latent ODE", "validation"] == pytest.approx(history["beyond"])
    assert errors["latent ODE", "NFE"] == history["nfe_forward"] > 0
    assert errors["latent ODE", "ms per step"] == pytest.approx(1e3 * history["seconds"] / 4)

    varied = found.variants.set_index("variant")["beyond"]
    double = replace(BASE, double=True)
    model = load_latent_ode(double, folder / "variants" / "double-precision-30-1.safetensors")
    assert model.decoder[0].weight.dtype == torch.float64
    assert varied["double precision"] == latent_ode_errors(model, spirals_for(double, 10, 30, 1, TEST))["beyond"]
    assert varied["base"] == varied["as it is"] != varied["double precision"]


def test_a_candidate_that_diverges_is_not_chosen(tmp_path: Path) -> None:
    found = spirals.results(work(tmp_path), **TABLE)
    assert found.chosen["RNN"] == {}
    trials = {(row["model"], str(row["candidate"])): row for row in found.trials.to_dict("records")}
    assert list(trials) == [
        ("latent ODE", "{}"),
        ("latent ODE", "{'lr': 0.03}"),
        ("RNN", "{'lr': 1e+30}"),
        ("RNN", "{}"),
    ]
    assert trials["RNN", "{'lr': 1e+30}"]["mean"] == math.inf
    row = trials["latent ODE", "{}"]
    assert row["mean"] == pytest.approx((row["seed 7"] + row["seed 8"]) / 2)


def test_trials_are_short_trainings_ranked_on_validation_series(tmp_path: Path) -> None:
    how = {**RUN, "setting": asdict(BASE), "checkpoints": tmp_path}
    names, *rows = latent_ode_trial(seeds=[3, 4], **how)[".csv"].decode().splitlines()
    losses = [history[-1]["beyond"] for _, history in latent_odes_for(seeds=[3, 4], **how).values()]
    assert (names, rows) == ("name,loss", [f"seed 3,{losses[0]}", f"seed 4,{losses[1]}"])
    wild = {**RUN, "setting": {}, "with_times": True, "training": TRAINING | {"lr": 1e30}}
    assert rnn_trial(seeds=[3], checkpoints=tmp_path, **wild) == {".csv": b"name,loss\nseed 3,inf\n"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"recipes": {"RNM": [{}]}}, "unknown model 'RNM', did you mean 'RNN'"),
        ({"variants": ["noise 0.31"]}, "unknown variant 'noise 0.31', did you mean 'noise 0.3'"),
    ],
)
def test_unknown_names_are_refused(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=problem):
        spirals.results(work(tmp_path), **(TABLE | change))


def test_the_likelihood_can_assume_more_noise_than_the_data_have(tmp_path: Path) -> None:
    for setting, expected in ((BASE, 0.2), (spirals.VARIANTS["noise 0.3"], 0.6)):
        model, _ = latent_odes_for(setting=asdict(setting), seeds=[1], checkpoints=tmp_path, **RUN)[1]
        assert model.noise == pytest.approx(expected)


@pytest.mark.parametrize("change", [{"setting": asdict(BASE)}, {"training": TRAINING | {"lr": 1e-3}}])
def test_trainings_at_the_same_time_have_checkpoints_of_their_own(change: dict[str, Any], tmp_path: Path) -> None:
    setting = asdict(replace(BASE, noise=0.3))
    for more in ({}, change):
        latent_odes_for(**{"setting": setting, "seeds": [1], "checkpoints": tmp_path, **RUN, **more})
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder in which notebooks 08 and 12 have trained models with two seeds."""
    changes = {"observations": FIGURES["observations"], "seeds": [0, 1], "rnn_seeds": [0, 1], "rnn_lengths": []}
    plain = {kind: [{}] for kind in ("latent ODE", "RNN")}
    spirals.results(work(tmp_path), **{**TABLE, **changes, "variants": [], "schedules": {}, "recipes": plain})
    remedies = {"centred spirals": {"unchanged": {}}}
    latent_paths.results(
        work(tmp_path, "12_latent_paths"), **{**PATHS, "observations": [40, 30], "remedies": remedies}
    )
    return tmp_path


def figures(folder: Path, seeds: list[int]) -> extrapolation.Results:
    return extrapolation.results(work(folder, "09_extrapolation"), seeds=seeds, **FIGURES)


def test_latent_spaces_are_measured_once_for_each_model(trained: Path, made: list[str]) -> None:
    first = figures(trained, [0])
    of_few = {f"{kind}/{name}" for kind in ("clusters", "ways") for name in ("base-40-0", "centred-spirals-40-0")}
    of_few |= {f"{kind}/centred-spirals-40-1" for kind in ("clusters", "ways")}
    assert set(made) == {"errors/base-40-0", "errors/base-30-0", *of_few}
    made.clear()
    again = figures(trained, [0])
    assert not made
    for name in ("errors", "clusters", "ways"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name), check_exact=True)
    more = figures(trained, [0, 1])
    assert set(made) == {"errors/base-40-1", "errors/base-30-1", "clusters/base-40-1", "ways/base-40-1"}
    assert list(more.errors["observations"]) == [40, 40, 30, 30]
    assert list(more.ways["spirals"]) == ["Table 2"] * 2 + ["centred spirals"] * 2


def test_what_is_measured_of_latent_spaces(trained: Path) -> None:
    found = figures(trained, [1])
    sources = {
        "Table 2": ("08_spirals/base", BASE),
        "centred spirals": ("12_latent_paths/centred-spirals", CENTRED),
    }
    for name, (stem, setting) in sources.items():
        model = load_latent_ode(setting, trained / "results" / "quick" / f"{stem}-40-1.safetensors")
        data = spirals_for(setting, 12, 40, 3, TEST)
        starts = encoded(model, data)
        two = widest(starts)
        parts = ([two.first, two.second], two.share), ([0, 1, 2, 3], 1.0)
        rows = found.clusters[(found.clusters["spirals"] == name) & (found.clusters["seed"] == 1)]
        for (columns, share), row in zip(parts, rows.itertuples(), strict=True):
            assert (row.dimensions, row.share) == (len(columns), share)
            assert (row.right, row.total) == linear_accuracy(starts[:, columns], data.clockwise)
        curves = way(model, data, FINE)
        (row,) = found.ways[(found.ways["spirals"] == name) & (found.ways["seed"] == 1)].itertuples()
        assert row.largest_tenth == largest_share(curves, TENTH) == largest_share(curves, FINE // 10)
        assert row.largest_of_ten == largest_share(curves, TENTH, TENTH)
        assert row.sign_changes == sign_changes(signed_area(curves))
        if name == "Table 2":
            errors, of_model = latent_ode_errors(model, data), next(found.errors.itertuples())
            assert (of_model.inside, of_model.beyond) == (errors["inside"], errors["beyond"])
            assert torch.equal(found.data[40].noisy, data.noisy)
            assert torch.equal(encoded(found.models[40], data), starts)
        else:
            assert torch.equal(found.centred_data.noisy, data.noisy)


def test_figures_show_the_models_with_the_lowest_validation_error(trained: Path) -> None:
    found = figures(trained, [0, 1])
    folder = trained / "results" / "quick" / "08_spirals"

    def best(stem: str) -> int:
        ends = [
            pd.read_csv(trained / "results" / "quick" / f"{stem}-{seed}.csv")["beyond"].iloc[-1] for seed in (0, 1)
        ]
        return ends.index(min(ends))

    expected = {f"latent ODE, {n} observations": best(f"08_spirals/base-{n}") for n in (40, 30)}
    expected |= {"RNN": best("08_spirals/RNN-40")}
    expected |= {"latent ODE, centred spirals": best("12_latent_paths/centred-spirals-40")}
    assert found.chosen == expected
    for n in (40, 30):
        file = folder / f"base-{n}-{found.chosen[f'latent ODE, {n} observations']}.safetensors"
        assert torch.equal(found.models[n].decoder[0].weight, load_latent_ode(BASE, file).decoder[0].weight)
    network = load_rnn(False, folder / f"RNN-40-{found.chosen['RNN']}.safetensors")
    assert torch.equal(found.network.out.weight, network.out.weight)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_samples_are_a_posterior_s_only_with_the_noise_of_the_data(factor: float, tmp_path: Path) -> None:
    plain = {kind: [{"noise_factor": factor}] for kind in ("latent ODE", "RNN")}
    changes = {"observations": [40, 30], "seeds": [0, 1], "rnn_seeds": [0, 1], "rnn_lengths": []}
    spirals.results(work(tmp_path), **{**TABLE, **changes, "variants": [], "schedules": {}, "recipes": plain})
    remedies = {"centred spirals": {"unchanged": {}}}
    latent_paths.results(
        work(tmp_path, "12_latent_paths"), **{**PATHS, "observations": [40, 30], "remedies": remedies}
    )
    assert figures(tmp_path, [0]).posterior == (factor == 1)


def test_the_way_from_one_direction_to_the_other() -> None:
    torch.manual_seed(0)
    model, data = spiral_latent_ode(**BASE.model, **BASE.solver), spirals_for(BASE, 12, 30, 0, TEST)
    found, starts = way(model, data, 4), encoded(model, data)
    ends = [starts[group].mean(0) for group in (~data.clockwise, data.clockwise)]
    for k, point in ((0, ends[0]), (1, 0.75 * ends[0] + 0.25 * ends[1]), (4, ends[1])):
        with torch.no_grad():
            expected = model.predict(point[None], data.grid[:100])[0]
        torch.testing.assert_close(found[k], expected, rtol=1e-3, atol=1e-3)
    assert found.shape == (5, 100, 2)


def test_the_widest_dimensions_are_those_with_the_largest_variances() -> None:
    """Of columns that are multiples of one another, so that variances are 4, 0, 25 and 1 times that of the last."""
    column = torch.arange(5.0, dtype=torch.float64)
    found = widest(torch.stack([2 * column, torch.ones(5), 7 - 5 * column, column], dim=1))
    assert (found.first, found.second) == (2, 0)
    torch.testing.assert_close(found.variances, 2.5 * torch.tensor([4.0, 0.0, 25.0, 1.0]).double())
    assert found.share == pytest.approx(29 / 30)


def test_other_weights_are_measured_anew(trained: Path, made: list[str]) -> None:
    figures(trained, [0])
    folder = trained / "results" / "quick" / "08_spirals"
    other = (folder / "base-40-1.safetensors").read_bytes()
    (folder / "base-40-0.safetensors").write_bytes(other)
    made.clear()
    figures(trained, [0])
    assert set(made) == {"errors/base-40-0", "clusters/base-40-0", "ways/base-40-0"}
    record = (trained / "results" / "quick" / "09_extrapolation" / "provenance.json").read_text()
    assert hashlib.sha256(other).hexdigest() in record


def test_a_model_that_is_not_there_is_missed(tmp_path: Path) -> None:
    problem = r"no base-40-1\.safetensors of 08_spirals in profile 'quick': make it with `dvc repro"
    with pytest.raises(MissingResultError, match=problem):
        figures(tmp_path, [1])


def test_training_makes_observations_more_likely() -> None:
    """Both kinds of models, beside themselves before it. The errors are those of the validation series."""
    train, validation = (spirals_for(BASE, n, 30, 0, split) for n, split in ((20, VALIDATION), (10, TEST)))
    training = {"steps": 40, "batch_size": 20, "lr": 1e-2, "kl_warmup": 0}
    short = training | {"lr": 0.0, "steps": 1}
    solver = {"rtol": 1e-3, "atol": 1e-3}

    @torch.no_grad()
    def bound(model: LatentODE | NextObservationRNN) -> float:
        torch.manual_seed(0)
        of_series = model.elbo if isinstance(model, LatentODE) else model.log_likelihood
        return float(of_series(train.values, train.times).mean())

    (before, _), (after, history) = (
        train_latent_odes([train], [validation], [0], how, BASE.model, solver)[0] for how in (short, training)
    )
    assert bound(after) > bound(before) + 100
    errors = latent_ode_errors(after, validation)
    assert {name: history[-1][name] for name in errors} == pytest.approx(errors)
    (before, _), (after, history) = (
        train_rnns([train], [validation], [0], how, True)[0] for how in (short, training)
    )
    assert bound(after) > bound(before) + 10
    errors = rnn_errors(after, validation)
    assert {name: history[-1][name] for name in errors} == pytest.approx(errors)


@pytest.mark.parametrize(("warmup", "weights"), [(4, [0.25, 0.5, 0.75, 1.0, 1.0]), (0, [1.0] * 5)])
def test_weight_of_the_divergence(warmup: int, weights: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows from step to step, and then stays."""
    found = []

    def train(nets, loss, batch, *_) -> list:
        found.extend(batch(step).kl_weight for step in range(5))
        return [[]]

    monkeypatch.setattr("reproduction.training.spirals.train_together", train)
    data = [spirals_for(BASE, 20, 30, 0, TRAIN)]
    train_rnns(data, data, [0], TRAINING | {"kl_warmup": warmup}, True)
    assert found == weights


def test_a_variant_differs_in_one_respect() -> None:
    for name, setting in spirals.VARIANTS.items():
        changed = {key for key, value in asdict(setting).items() if value != asdict(BASE)[key]}
        expected = {"tolerance", "double"} if name == "tolerance 1.5e-8" else {next(iter(changed))}
        assert changed == expected, name


def test_splits_share_no_series_and_training_reaches_what_is_predicted() -> None:
    splits = {split: spirals_for(BASE, 500, 30, 0, split) for split in (0, 1, 2)}
    assert splits[TRAIN].start.max() > 200 >= splits[TEST].start.max()
    assert not torch.equal(splits[1].noisy, splits[2].noisy)
    anywhere = spirals_for(BASE, 500, 30, 0, TEST, "anywhere")
    assert anywhere.start.max() > 200
    reached = splits[TRAIN].start.max() + 100
    outside = spirals_for(BASE, 500, 30, 0, TEST, "outside")
    assert (outside.start + 100 >= reached).all()


def test_figures_hold_what_they_say() -> None:
    data = spirals_for(BASE, 2, 30, 0, TEST)
    figure, axes = plt.subplots()
    draw_prediction(axes, data.truth[0], data.values[0], data.truth[0, :100], data.truth[0, 100:], data.truth[:1])
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


def test_a_true_curve_goes_through_the_points_of_its_series() -> None:
    data = spirals_for(replace(BASE, double=True), 4, 30, 0, TEST)
    for row in range(4):
        curve = true_curve("example", data, row, 3 * 199 + 1)
        torch.testing.assert_close(curve[::3], data.truth[row])


def test_what_training_covers_are_the_points_of_its_windows() -> None:
    """From the first point of the first window to the last one of the last."""
    train = spirals_for(replace(BASE, double=True), 2000, 30, 0, TRAIN)
    for clockwise in (False, True):
        curve, own = covered_curve("example", clockwise, 300), train.rows(train.clockwise == clockwise)
        first, last = own.start.argmin(), own.start.argmax()
        assert (own.start[first], own.start[last]) == (100, 300)
        torch.testing.assert_close(curve[:100], own.truth[first, :100])
        torch.testing.assert_close(curve[-100:], own.truth[last, :100])


def test_a_frame_holds_all_curves_and_is_the_same_for_all_panels() -> None:
    figure, panels = plt.subplots(1, 2)
    share_frame(panels, [torch.tensor([[0.0, 1.0], [4.0, 2.0]]), torch.tensor([[-6.0, 1.5]])], margin=0.1)
    for panel in panels:
        assert (*panel.get_xlim(), *panel.get_ylim()) == pytest.approx((-7, 5, 0, 3))
        assert panel.get_aspect() == 1
    plt.close(figure)


def test_a_way_has_the_colours_of_its_times() -> None:
    figure, axes = plt.subplots()
    curve, times = torch.arange(8.0).reshape(4, 2), torch.tensor([0.0, 1.0, 3.0, 6.0])
    line = draw_way(axes, curve, times)
    assert line.get_array().tolist() == [0.0, 1.0, 3.0]
    assert [piece.tolist() for piece in line.get_segments()] == [curve[k : k + 2].tolist() for k in range(3)]
    plt.close(figure)


def test_predictions_of_a_series_are_the_same_alone_and_in_a_batch() -> None:
    """The steps of the solver are in common, so up to its tolerance."""
    torch.manual_seed(0)
    data = spirals_for(BASE, 6, 30, 0, TEST)
    model = spiral_latent_ode(**BASE.model, rtol=1e-6, atol=1e-6)
    together = latent_ode_predictions(model, data)
    alone = torch.cat([latent_ode_predictions(model, data.rows(slice(k, k + 1))) for k in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
