"""Whether latent paths join, what helps, and the best of several models; against what can be known without them."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError, UnknownNameError
from reproduction.data.spirals import RECIPES, draw_spirals
from reproduction.experiments import latent_paths, spirals
from reproduction.experiments.spiral_runs import trained_as, validation_error
from reproduction.figures.spirals import looks_by_number
from reproduction.measure.best_of import best_of
from reproduction.measure.fits import ratio_of_groups
from reproduction.measure.joining import joining, next_window
from reproduction.measure.prediction import latent_ode_errors
from reproduction.models.latent_ode import LatentODE
from reproduction.training.spirals import BASE, TEST, load_latent_ode, spirals_for, train_latent_odes
from reproduction.workspace import MissingResultError, Workspace

ANGLE = 6 * math.pi / 499


class Oracle(nn.Module):
    """Knows the angle of a series on `r = 0.3 θ` round the origin from its first observation, and how it turns."""

    def __init__(self, off: float = 0.0):
        super().__init__()
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))

    def forward(self, times: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        angle = values[:, 0].norm(dim=-1) / 0.3 - times[:, 0]
        return (angle + self.off)[:, None], torch.full_like(angle, -30.0)[:, None]


class Clock(nn.Module):
    """The angle grows with time, `rate` times as fast as that of the spirals."""

    def __init__(self, rate: float = 1.0):
        super().__init__()
        self.rate = rate

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.full_like(z, self.rate)


class Spiral(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 0.3 * z * torch.cat([z.cos(), z.sin()], dim=-1)


def exact(rate: float = 1.0, off: float = 0.0) -> LatentODE:
    return LatentODE(Oracle(off), Clock(rate), Spiral(), 0.1, rtol=1e-9, atol=1e-9)


def counter_clockwise(recipe: str = "centred", noise: float = 0.0) -> Any:
    data = draw_spirals(recipe, 40, 30, noise, 0, windows="inside", dtype=torch.float64)
    return data.rows(~data.clockwise)


def test_an_exact_model_joins_its_paths() -> None:
    found = joining(exact(), counter_clockwise())
    assert max(found.distance, found.beyond, found.encoded) < 1e-6
    angles = ANGLE * counter_clockwise().start.double()
    assert found.spread == pytest.approx(float(angles.var(correction=0).sqrt()))
    assert found.gap < 1e-6


def test_a_flow_that_lags_misses_the_next_window_by_as_much() -> None:
    """At 0.9 of the speed it is a tenth of a window late; predictions from the next window are late as well."""
    found = joining(exact(rate=0.9), counter_clockwise())
    assert found.distance == pytest.approx(0.1 * 100 * ANGLE, rel=1e-3)
    data = counter_clockwise()
    late = exact(rate=0.9)
    assert found.beyond == pytest.approx(latent_ode_errors(late, data)["beyond"])
    start = ANGLE * (data.start.double() + 100)
    predicted = late.predict(start[:, None], data.grid[:100])
    expected = float((predicted - data.truth[:, 100:]).square().mean().sqrt())
    assert found.encoded == pytest.approx(expected, rel=1e-3)
    assert 0 < found.encoded < found.beyond


def test_the_next_window_is_observed_at_the_same_places() -> None:
    data = counter_clockwise(noise=0.1)
    times, values = next_window(data)
    assert torch.equal(times, data.times)
    for row in (0, 7):
        assert torch.equal(values[row], data.noisy[row, 100 + data.observed[row]])


# Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["centred", "inward"])
def test_centred_spirals_are_mirror_images_round_one_centre(recipe: str) -> None:
    kind, angle = RECIPES[recipe], torch.linspace(1, 17, 50, dtype=torch.float64)
    one, other = kind.counter_clockwise(angle), kind.clockwise(angle)
    torch.testing.assert_close(other, one * torch.tensor([-1.0, 1.0], dtype=torch.float64))
    radius = 0.3 * (angle if recipe == "centred" else 6 * math.pi - angle)
    torch.testing.assert_close(one.norm(dim=-1), radius)


def test_the_example_with_its_windows_ends_where_its_curves_do() -> None:
    everywhere, inside = (
        draw_spirals("example, its windows", 4000, 30, 0.1, 0, windows=x) for x in ("anywhere", "inside")
    )
    assert (everywhere.start.min(), everywhere.start.max()) == (100, 399)
    assert everywhere.values.isfinite().all()
    assert (inside.start.min(), inside.start.max()) == (100, 299)
    assert inside.truth.isfinite().all()
    beyond = everywhere.truth[everywhere.start > 300, 100:]
    assert beyond.isnan().any()
    assert [name for name, kind in RECIPES.items() if not kind.goes_on] == ["example, its windows"]


def test_there_are_three_kinds_of_windows() -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of windows 'insight', did you mean 'inside'"):
        draw_spirals("example", 4, 30, 0.1, 0, windows="insight")
    outside = draw_spirals("example", 50, 30, 0.1, 0, windows="outside")
    assert set(outside.start.tolist()) == {300}


# The best of several ---------------------------------------------------------------------------------------------


def test_the_best_of_five_by_counting() -> None:
    random = np.random.default_rng(0)
    validation, test = random.random(9), random.random(9)
    groups = itertools.combinations(range(9), 5)
    best = sorted(test[min(group, key=validation.__getitem__)] for group in groups)
    found = best_of(validation, test, 5)

    def smallest(share: float) -> float:
        return next(x for k, x in enumerate(best) if (k + 1) / len(best) >= share - 1e-12)

    assert (found.estimate, found.low, found.high) == (smallest(0.5), smallest(0.025), smallest(0.975))
    assert (found.n, found.method) == (9, "best of 5")


def test_the_best_of_all_is_one_model() -> None:
    found = best_of([3.0, 1.0, 2.0], [0.1, 0.2, 0.3], 3)
    assert (found.estimate, found.low, found.high) == (0.2, None, None)
    everyone = best_of([3.0, 1.0, 2.0], [0.1, 0.2, 0.3], 1)
    assert (everyone.low, everyone.estimate, everyone.high) == (0.1, 0.2, 0.3)
    with pytest.raises(InvalidArgumentError, match="groups of 4 need as many models, got 3 and 3"):
        best_of([3.0, 1.0, 2.0], [0.1, 0.2, 0.3], 4)


def test_ratio_of_groups_is_welch_s() -> None:
    """Against the formulas, with degrees of freedom after Welch and Satterthwaite."""
    from scipy.stats import t

    top, bottom = [1.0, 2.0, 4.0, 3.0], [1.0, 1.5, 0.7]
    a, b = np.log(top), np.log(bottom)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = t.ppf(0.975, freedom) * math.sqrt(va + vb)
    found = ratio_of_groups(top, bottom)
    middle = a.mean() - b.mean()
    expected = [math.exp(middle + x) for x in (0, -half, half)]
    assert [found.estimate, found.low, found.high] == pytest.approx(expected)
    assert found.n == 3
    alone = ratio_of_groups([2.0], [4.0, 1.0])
    assert (alone.estimate, alone.low, alone.high) == (pytest.approx(1.0), None, None)
    same = ratio_of_groups([2.0, 2.0], [4.0, 4.0])
    assert [same.estimate, same.low, same.high] == pytest.approx([0.5] * 3)
    with pytest.raises(InvalidArgumentError, match="values must be positive"):
        ratio_of_groups([1.0, 0.0], [1.0])


# Remedies --------------------------------------------------------------------------------------------------------

TRAINING = {"steps": 60, "batch_size": 20, "lr": 1e-2, "noise_factor": 3.0}


@pytest.mark.parametrize(("penalty", "weight"), [("path", 10.0), ("consistency", 10.0)])
def test_a_penalty_makes_small_what_it_punishes(penalty: str, weight: float) -> None:
    train, validation = ([spirals_for(BASE, 20, 30, 0, split)] for split in (0, 1))
    found = []
    for change in ({}, {penalty: weight}):
        how = (TRAINING | change, BASE.model, BASE.solver)
        ((model, _),) = train_latent_odes(train, validation, [0], *how)
        torch.manual_seed(1)
        first = torch.randint(30, (20,))
        (data,) = train
        with torch.no_grad():
            terms = model.terms(data.values, data.times, with_length=True, gap_at=first)
        found.append(float((terms.length if penalty == "path" else terms.gap).mean()))
        assert "norm" not in model.how
    assert found[1] < 0.5 * found[0]


def test_a_penalty_of_nothing_changes_nothing() -> None:
    train, validation = ([spirals_for(BASE, 20, 30, 0, split)] for split in (0, 1))
    weights = [
        train_latent_odes(train, validation, [0], TRAINING | {"steps": 3} | change, BASE.model, BASE.solver)[0][0]
        for change in ({}, {"path": 0.0, "consistency": 0.0}, {"path": 0.1})
    ]
    first, second, third = (model.decoder[0].weight for model in weights)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


TABLE = {
    "observations": [30],
    "seeds": [1, 2],
    "rnn_seeds": [],
    "train_series": 20,
    "test_series": 10,
    "batch_size": 10,
    "lr": 1e-2,
    "steps": 4,
    "rnn_steps": 3,
    "rnn_lengths": [],
    "kl_warmup": 0,
    "noise_factor": 2.0,
    "compiled": False,
    "recipes": {"latent ODE": [{"lr": 3e-3}]},
    "search_seeds": [7],
    "search_steps": 2,
    "variants": [],
    "schedules": {},
    "variant_observations": 30,
    "variant_seeds": [],
    "variant_steps": 2,
    "device": "cpu",
}
PATHS = {
    "observations": [30],
    "seeds": [1, 2],
    "remedies": {
        "path penalty": {"a": {"path": 0.1}, "b": {"path": 0.2, "noise_factor": 1.0}},
        "consistency": {"wild": {"consistency": 1.0, "lr": 1e30}, "tame": {"consistency": 1.0}},
        "contributed example": {"unchanged": {"batch_size": 20, "steps": 3, "schedule": "constant"}},
        "bounded speed": {"unchanged": {}},
    },
    "remedy_observations": {"consistency": [20, 30]},
    "remedy_seeds": [3],
    "steps": 5,
    "search_seeds": [7, 8],
    "search_steps": 4,
    "search_observations": 25,
    "train_series": 20,
    "test_series": 10,
    "device": "cpu",
}


def computed(folder: Path, **changes: Any) -> latent_paths.Results:
    spirals.results(Workspace("08_spirals", "quick", folder, folder), **TABLE)
    return latent_paths.results(Workspace("12_latent_paths", "quick", folder, folder), **{**PATHS, **changes})


def test_remedies_are_searched_trained_and_measured(tmp_path: Path) -> None:
    found = computed(tmp_path)
    folder = tmp_path / "results" / "quick" / "12_latent_paths"
    records = json.loads((folder / "provenance.json").read_text())
    settings = {name: record["settings"] for name, record in records.items()}

    # The paper's training, as notebook 08 has chosen it, but for what the candidate changes.
    papers = {"batch_size": 10, "lr": 3e-3, "kl_warmup": 0, "noise_factor": 2.0, "compiled": False, "steps": 4}
    assert settings["search/path-penalty-b"]["training"] == papers | {"path": 0.2, "noise_factor": 1.0}
    assert settings["search/path-penalty-b"]["seeds"] == [7, 8]
    assert settings["search/path-penalty-b"]["observations"] == 25
    assert found.chosen["consistency"] == {"consistency": 1.0}
    assert settings["consistency-20-3"]["training"] == papers | {"steps": 5, "consistency": 1.0}
    example = settings["contributed-example-30-3"]
    assert example["training"] == papers | {"batch_size": 20, "steps": 3, "schedule": "constant"}
    assert example["setting"]["recipe"] == "example, its windows"
    assert settings["bounded-speed-30-3"]["setting"]["bounded"]

    trained = [("consistency", 20), ("consistency", 30), ("path penalty", 30), ("contributed example", 30)]
    rows = {(row.remedy, row.observations) for row in found.errors.itertuples()}
    assert rows == {*trained, ("bounded speed", 30)}
    both = found.paths[found.paths["direction"] == "both"].set_index(["remedy", "observations", "seed"])
    assert set(both.index) == {("paper", 30, 1), ("paper", 30, 2), *((*name, 3) for name in rows)}

    setting = replace(BASE, bounded=True)
    model = load_latent_ode(setting, folder / "bounded-speed-30-3.safetensors")
    data = spirals_for(setting, 10, 30, 3, TEST)
    expected = joining(model, data)
    row = both.loc[("bounded speed", 30, 3)]
    assert tuple(row[list(expected._fields)]) == tuple(expected)
    assert row["gap"] == expected.gap
    errors = found.errors.set_index("remedy").loc["bounded speed"]
    assert errors["beyond"] == pytest.approx(expected.beyond)
    assert row["validation"] == validation_error(folder / "bounded-speed-30-3.safetensors")
    clockwise = joining(model, data.rows(data.clockwise))
    part = found.paths[(found.paths["remedy"] == "bounded speed") & (found.paths["direction"] == "clockwise")]
    assert float(part["distance"].iloc[0]) == clockwise.distance


def test_what_was_trained_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = computed(tmp_path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was computed before")

    monkeypatch.setattr("reproduction.training.spirals.train_latent_odes", never)
    again = computed(tmp_path)
    for name in ("paths", "errors", "trials"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name), check_exact=True)


def test_a_recipe_is_read_from_the_record_of_the_weights(tmp_path: Path) -> None:
    spirals.results(Workspace("08_spirals", "quick", tmp_path, tmp_path), **TABLE)
    weights = tmp_path / "results" / "quick" / "08_spirals" / "base-30-1.safetensors"
    assert trained_as(weights)["lr"] == 3e-3
    history = pd.read_csv(weights.with_suffix(".csv"))
    assert validation_error(weights) == history["beyond"].iloc[-1]


def test_what_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    work = Workspace("12_latent_paths", "quick", tmp_path, tmp_path)
    with pytest.raises(UnknownNameError, match="unknown remedy 'consistence', did you mean 'consistency'"):
        latent_paths.results(work, **{**PATHS, "remedies": {"consistence": {"a": {}}}})
    with pytest.raises(MissingResultError, match=r"no base-30-1\.safetensors of 08_spirals"):
        latent_paths.results(work, **PATHS)


def test_numbers_of_observations_look_different() -> None:
    looks = looks_by_number([100, 30, 30, 7])
    assert list(looks) == [7, 30, 100]
    assert len({look["marker"] for look in looks.values()}) == len({look["color"] for look in looks.values()}) == 3
