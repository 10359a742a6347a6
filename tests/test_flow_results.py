"""Notebooks 06 and 07 compute: run by run, each once, and what they find is what their parts find."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.stats
import torch

from neural_ode import NonFiniteError
from neural_ode.compiled import CannotCompile
from reproduction.data.densities import get_target
from reproduction.experiments import density_matching, maximum_likelihood
from reproduction.experiments.flow_measurements import unseen_points
from reproduction.experiments.flow_search import likelihood_trial, matching_trial
from reproduction.experiments.flows import density_grid, theorem_errors, transported_density, untrained_flows
from reproduction.experiments.true_density import true_log_prob
from reproduction.measure.flow_quality import divergence, log_likelihood
from reproduction.measure.reversal import base_points, reversal_error
from reproduction.training.flows import Likelihood, train_continuous
from reproduction.workspace import Workspace

CONTINUOUS = {"iterations": 4, "batch": 16, "annealing": 0.0, "hidden": 4, "records": 2}
PLANAR = {"iterations": 20, "batch": 16, "annealing": 0.0}
COMMON: dict[str, Any] = {
    "continuous": CONTINUOUS,
    "planar": PLANAR,
    "rates": {"NF": [0.001, 0.01], "CNF": [0.02]},
    "tolerance": 1e-3,
    "gradient": "direct",
    "compiled": False,
    "device": "cpu",
    "repeats": 1,
}
MATCHING: dict[str, Any] = {
    **COMMON,
    "targets": ["U1", "U3"],
    "sizes": [1, 2],
    "search": {"size": 1, "seed": 100, "share": 0.5},
    "evaluation": 50,
    "theorem_tolerances": [1e-3, 1e-4],
    "theorem_points": 2,
    "widths": [4, 8],
    "determinant_widths": [2, 4, 8],
    "width_points": 2,
}
LIKELIHOOD: dict[str, Any] = {
    **COMMON,
    "sets": ["two circles", "two moons"],
    "units": 2,
    "layers": 2,
    "search": {"seed": 100, "share": 0.5},
    "held_out": 40,
    "pixels": 5,
    "shares": [0.5, 1.0],
    "reversal_tolerances": [1e-3, 1e-4],
    "picture_iterations": 3,
}


@pytest.fixture(scope="module", autouse=True)
def _eager() -> Iterator[None]:
    """Planar flows without a compiler: tests/test_flows.py compiles them."""

    def refuse(*_: object) -> None:
        raise CannotCompile("there is no compiler")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neural_ode.compiled.folding.call", refuse)
        yield


def matched(folder: Path, seeds: list[int], **changed: Any) -> density_matching.Results:
    work = Workspace("06_density_matching", "quick", folder, folder)
    return density_matching.results(work, **{**MATCHING, "seeds": seeds, **changed})


def likely(folder: Path, seeds: list[int], **changed: Any) -> maximum_likelihood.Results:
    work = Workspace("07_maximum_likelihood", "quick", folder, folder)
    return maximum_likelihood.results(work, **{**LIKELIHOOD, "seeds": seeds, **changed})


@pytest.fixture(scope="module")
def matching(_eager: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, density_matching.Results]:
    """Computed once; nothing may be changed there."""
    folder = tmp_path_factory.mktemp("matching")
    return folder, matched(folder, [0])


@pytest.fixture(scope="module")
def likelihood(_eager: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, maximum_likelihood.Results]:
    """Computed once; nothing may be changed there."""
    folder = tmp_path_factory.mktemp("likelihood")
    return folder, likely(folder, [0])


def records(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("results/quick/*/provenance.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("results/**/*") if path.is_file()}


def same_tables(one: Any, other: Any) -> None:
    for name, table in one._asdict().items():
        if isinstance(table, pd.DataFrame):
            pd.testing.assert_frame_equal(table, getattr(other, name))


FOR_A_SEED = [
    f"{part}{kind}-{{target}}-{{size}}-{{seed}}" for part in ("", "divergence/") for kind in ("CNF", "NF")
]


def expected_06(seeds: list[int]) -> set[str]:
    own = {
        name.format(target=target, size=size, seed=seed)
        for name in FOR_A_SEED
        for target in MATCHING["targets"]
        for size in MATCHING["sizes"]
        for seed in seeds
    }
    return own | {"theorem1", "width_operations", "width_times", "search/NF-0.001", "search/NF-0.01"}


def test_density_matching_is_computed_once(matching: tuple[Path, density_matching.Results]) -> None:
    """Also if the steps of the solver are compiled: that decides no result."""
    folder, first = matching
    assert set(records(folder)) == expected_06([0])
    before = contents(folder)
    same_tables(first, matched(folder, [0], compiled=True))
    assert contents(folder) == before


def test_a_further_seed_of_density_matching_makes_its_own_runs(
    matching: tuple[Path, density_matching.Results], tmp_path: Path
) -> None:
    """Its planar flows, trained without the others, are those trained with them, but for rounding."""
    folder, first = matching
    later, at_once = shutil.copytree(folder, tmp_path / "later"), tmp_path / "at once"
    before = contents(later)
    second = matched(later, [0, 1])
    assert set(records(later)) == expected_06([0, 1])
    after = contents(later)
    assert [path.name for path in before if after[path] != before[path]] == ["provenance.json"]
    of_seed_0 = second.divergences[second.divergences["seed"] == 0]
    pd.testing.assert_frame_equal(of_seed_0.reset_index(drop=True), first.divergences)
    pd.testing.assert_frame_equal(second.divergences, matched(at_once, [0, 1]).divergences, rtol=1e-4)


def test_density_matching_finds_what_its_parts_find(matching: tuple[Path, density_matching.Results]) -> None:
    _, found = matching
    assert set(found.flows) == {(k, t, n) for k in ("NF", "CNF") for t in ("U1", "U3") for n in (1, 2)}
    for kind, target, size, seed, value in found.divergences.itertuples(index=False):
        assert seed == 0
        assert value == divergence(found.flows[kind, target, size], get_target(target), 50)
    torch.manual_seed(1)
    z = torch.randn(2, 2, dtype=torch.float64)
    errors = theorem_errors(untrained_flows()["planar"], z, [1e-3, 1e-4])
    assert found.theorem.set_index("flow").loc["planar", "error"].tolist() == errors
    for table, what in ((found.operations, "operations"), (found.times, "seconds")):
        assert list(table.groupby("work", sort=False).size().items()) == [("trace", 2), ("determinant", 3)]
        assert (table[what] > 0).all()
    assert found.history.groupby(["target", "size", "seed"]).size().tolist() == [2] * 4
    assert set(found.planar["rate"]) == {found.rates["NF"]}
    best = found.trials.loc[found.trials["mean"].idxmin()]
    assert (best["model"], best["candidate"]) == ("NF", found.rates["NF"])
    assert found.rates["CNF"] == 0.02


def expected_07(seeds: list[int]) -> set[str]:
    names = {
        f"{kind}-{name}-{seed}" for kind in ("CNF", "NF") for name in ("two-circles", "two-moons") for seed in seeds
    }
    solved = {name for name in names if name.startswith("CNF")}
    first = {name for name in names if name.endswith("-0")}
    found = names | {f"{what}/{name}" for name in names for what in ("log_likelihood", "gap")}
    found |= {f"{what}/{name}" for name in solved for what in ("reversal", "sampling_cost")}
    found |= {f"mass/{name}" for name in first} | {f"density/{name}" for name in first & solved}
    return found | {"search/NF-0.001", "search/NF-0.01", "picture", "frames/animation", "frames/picture"}


def test_maximum_likelihood_is_computed_once_and_a_further_seed_makes_its_own_runs(
    likelihood: tuple[Path, maximum_likelihood.Results], tmp_path: Path
) -> None:
    folder, first = likelihood
    assert set(records(folder)) == expected_07([0])
    before = contents(folder)
    same_tables(first, likely(folder, [0]))
    assert contents(folder) == before
    later = shutil.copytree(folder, tmp_path / "later")
    before = contents(later)
    likely(later, [0, 1])
    assert set(records(later)) == expected_07([0, 1])
    after = contents(later)
    assert [path.name for path in before if after[path] != before[path]] == ["provenance.json"]


def test_maximum_likelihood_finds_what_its_parts_find(
    likelihood: tuple[Path, maximum_likelihood.Results],
) -> None:
    _, found = likelihood
    for kind, name, _, value in found.likelihoods.itertuples(index=False):
        unseen = unseen_points(name, 40)
        assert value == log_likelihood(found.flows[kind, name], unseen)
        (gap,) = found.gaps[(found.gaps["flow"] == kind) & (found.gaps["set"] == name)].to_dict("records")
        true = true_log_prob(name, unseen)
        assert gap["true log p"] == pytest.approx(float(true.mean()))
        assert gap["gap"] == pytest.approx(float(true.mean()) - value, abs=1e-5)
        each = (true - found.flows[kind, name].log_prob(unseen)).detach().numpy()
        assert gap["standard error"] == pytest.approx(scipy.stats.sem(each))
    flow = found.flows["CNF", "two moons"]
    errors = [reversal_error(flow, base_points(), 1e-3)]  # single precision, at the tolerance of the training
    own = found.history[found.history["set"] == "two moons"]
    assert own["reversal"].iloc[-1] == errors[0]
    back = found.reversal.set_index(["set", "tolerance"])["error"]
    assert back["two moons", 1e-3] == pytest.approx(errors[0], rel=1e-2)
    grid = density_grid(transported_density(flow, 0.5), maximum_likelihood.EDGE, 5)
    torch.testing.assert_close(found.densities["two moons"][0], grid, rtol=1e-3, atol=1e-6)
    assert found.frames["animation"].shape == found.frames["picture"].shape == (10, 100, 100)
    assert set(found.costs["work"]) == {"density", "sampling, with density", "sampling"}
    assert (found.costs[["nfe", "seconds"]] > 0).all(axis=None)
    assert len(found.masses) == 4
    assert found.masses["mass"].between(0.9, 1.1).all()
    assert len(found.picture_history) == 2


def test_the_run_of_a_training_is_that_training(likelihood: tuple[Path, maximum_likelihood.Results]) -> None:
    """Made by hand: the same flow, bit for bit."""
    training = {**CONTINUOUS, "span": 1.0, "rate": 0.02}
    flow, _ = train_continuous(Likelihood("two circles"), 2, 0, training, {"rtol": 1e-3, "atol": 1e-3})
    found = likelihood[1].flows["CNF", "two circles"]
    for a, b in zip(found.parameters(), flow.parameters(), strict=True):
        assert torch.equal(a, b)


Trial = Callable[..., dict[str, bytes]]


@pytest.mark.parametrize(("trial", "names"), [(matching_trial, "targets"), (likelihood_trial, "sets")])
@pytest.mark.parametrize(("kind", "training"), [("NF", PLANAR), ("CNF", {**CONTINUOUS, "span": 1.0})])
def test_a_trial_that_diverges_has_infinite_losses(
    kind: str, training: dict[str, Any], trial: Trial, names: str, tmp_path: Path
) -> None:
    values = ["U1", "U3"] if names == "targets" else ["two circles", "two moons"]
    point = {"kind": kind, names: values, "size": 1, "seed": 0, "evaluation": 20}
    point |= {
        "training": {**training, "rate": math.inf},
        "solver": {"rtol": 1e-3, "atol": 1e-3} if kind == "CNF" else None,
    }
    found = trial(**point, compiled=False, device="cpu", checkpoints=tmp_path)
    first, *rows = found[".csv"].decode().splitlines()
    assert first == "name,loss"
    assert [row.split(",")[0] for row in rows] == values
    assert all(math.isinf(float(row.split(",")[1])) for row in rows)


def test_a_rate_with_which_training_diverges_is_noted(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="diverges with each of"):
        likely(tmp_path, [0], rates={"NF": [1e30], "CNF": [0.02]})
    note = tmp_path / "results/quick/07_maximum_likelihood/diverged/NF-1e+30.json"
    assert "lower the learning rate" in json.loads(note.read_text())["diverged"]
    (record,) = records(tmp_path).values()
    assert record["settings"]["candidate"] == 1e30
