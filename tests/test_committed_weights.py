"""The committed weights of full scale reproduce the committed numbers."""

import hashlib
import inspect
import json
import math
import re
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from neural_ode.nn import ContinuousFlow
from reproduction.data.densities import get_target
from reproduction.data.mnist import load_mnist
from reproduction.data.oscillators import draw_oscillators
from reproduction.data.points import points
from reproduction.experiments import spirals
from reproduction.experiments.flows import density_grid
from reproduction.measure.flow_quality import divergence
from reproduction.measure.prediction import latent_ode_errors, rnn_errors
from reproduction.models.flows import HyperNetwork, PlanarDynamics, PlanarFlow
from reproduction.pipeline.compute import experiment
from reproduction.pipeline.parameters import notebook_parameters
from reproduction.training import poisson
from reproduction.training.loop import read_history
from reproduction.training.mnist import error_rate, load_classifier
from reproduction.training.spirals import BASE, TEST, load_latent_ode, load_rnn, run_name, spirals_for
from reproduction.training.weights import load_weights
from reproduction.workspace import Workspace

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "paper"
PARAMETERS = yaml.safe_load((ROOT / "params" / "paper.yaml").read_text())


def metrics(notebook: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((ROOT / "figures" / "paper" / notebook / "metrics.json").read_text())
    return found


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def records(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / folder / "provenance.json").read_text())
    return found


@pytest.mark.parametrize("folder", sorted(path.name for path in RESULTS.iterdir()))
def test_results_are_those_that_were_made(folder: str) -> None:
    """Each file has the checksum that its record says, a training has a history, and there is no file besides."""
    runs = records(folder)
    expected = {
        f"{name}{suffix}": checksum for name, run in runs.items() for suffix, checksum in run["files"].items()
    }
    found = {
        path.relative_to(RESULTS / folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (RESULTS / folder).rglob("*")
        if path.is_file() and path.name != "provenance.json"
    }
    assert found == expected
    for name, run in runs.items():
        if {".csv", ".safetensors"} <= set(run["files"]):
            assert read_history(RESULTS / folder / f"{name}.csv"), name


@pytest.mark.parametrize("folder", sorted(path.name for path in RESULTS.iterdir()))
def test_every_run_says_what_made_it(folder: str) -> None:
    for name, run in records(folder).items():
        assert {"date"} < set(run["made"]) <= {"commit", "date", "neural_ode", "torch"}, name
        assert "commit" in run["made"] or "torch" in run["made"], name
        assert ("commit" in run["made"]) <= bool(run.get("accepted")), (
            f"{name}: made by earlier code, for no reason"
        )


def asked(notebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Any]:
    """What full scale would compute first, if parameters were changed."""

    class AskedError(Exception):
        pass

    def stop(function: object, tasks: list[Any], *_: object, **__: object) -> None:
        computed.extend(tasks)
        raise AskedError

    computed: list[Any] = []
    monkeypatch.setattr("reproduction.results.sweep", stop)
    results = experiment(notebook).results
    parameters = notebook_parameters(ROOT, notebook, "paper") | changes
    given = {name: parameters[name] for name in inspect.signature(results).parameters if name != "work"}
    with suppress(AskedError):
        results(Workspace(notebook, "paper", ROOT, tmp_path), **given)
    return computed


@pytest.mark.parametrize("folder", sorted(path.name for path in RESULTS.iterdir()))
def test_committed_results_are_those_of_today(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the parameters of full scale and of the code that is here: nothing would be computed."""
    assert asked(folder, tmp_path, monkeypatch) == []


OTHERS_SEEDS = ("09_extrapolation", "12_latent_paths")
"""Notebooks whose `seeds` are those of models that another one trains."""

SEEDED = [name for name, section in PARAMETERS.items() if "seeds" in section and name not in OTHERS_SEEDS]


@pytest.mark.parametrize("folder", SEEDED)
def test_a_further_seed_at_full_scale_is_that_seed(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = asked(folder, tmp_path, monkeypatch, seeds=[*PARAMETERS[folder]["seeds"], 99])
    assert set(re.findall(r'"seed": (\d+)', json.dumps(computed))) == {"99"}


# Table 1 ---------------------------------------------------------------------------------------------------------

CLASSIFIERS = {name: run["settings"] for name, run in records("04_mnist").items() if ".safetensors" in run["files"]}
ERRORS = pd.DataFrame(
    [
        {
            "network": settings["network"],
            "run": name,
            "error": float(pd.read_csv(RESULTS / "04_mnist" / "test_errors" / f"{name}.csv")["test error (%)"][0]),
        }
        for name, settings in CLASSIFIERS.items()
    ]
)
FIRST = ERRORS.drop_duplicates("network")
ONE_DIGIT = 0.01  # percent of 10,000: another processor may round one of them to the other side


@pytest.mark.parametrize("row", list(FIRST.itertuples(index=False)), ids=lambda row: row[0])
def test_classifiers_make_the_test_error(row: tuple[str, str, float]) -> None:
    network, run, expected = row
    test = load_mnist(ROOT / "data" / "mnist").test
    assert len(test.labels) == 10_000
    file, how = RESULTS / "04_mnist" / f"{run}.safetensors", CLASSIFIERS[run]["solver"]
    assert error_rate(load_classifier(network, file, **how), test) == pytest.approx(expected, abs=1.5 * ONE_DIGIT)


def last_rows(pattern: str) -> pd.DataFrame:
    """The ends of trainings, by file."""
    files = sorted(RESULTS.glob(pattern))
    assert files
    return pd.DataFrame([read_history(file)[-1] for file in files], index=[file.stem for file in files])


def test_every_network_has_learned_and_solved() -> None:
    assert (ERRORS["error"] < 5).all()
    for network in ("RK-Net", "ODE-Net"):
        # dopri5 takes two evaluations to begin and six for a step
        assert (last_rows(f"04_mnist/{network}-*.csv")["nfe_forward"] >= 8).all()


def test_metrics_are_the_means_over_seeds() -> None:
    for network, error in ERRORS.groupby("network")["error"].mean().items():
        assert metrics("04_mnist")[f"{network} error %"] == pytest.approx(error)


# Figures 4 and 5 -------------------------------------------------------------------------------------------------


def trained_flow(notebook: str, file: str, size: int, parameters: dict[str, Any], leads_to: Any) -> Any:
    if file.startswith("NF"):
        flow: Any = PlanarFlow(2, size, leads_to)
    else:
        how = {"rtol": parameters["tolerance"], "atol": parameters["tolerance"]}
        flow = ContinuousFlow(PlanarDynamics(HyperNetwork(2, size, parameters["continuous"]["hidden"])), 2, **how)
    load_weights(flow, RESULTS / notebook / f"{file}.safetensors")
    return flow


MATCHING = PARAMETERS["06_density_matching"]
LIKELIHOOD = PARAMETERS["07_maximum_likelihood"]


@pytest.mark.parametrize("size", MATCHING["sizes"])
@pytest.mark.parametrize("target", MATCHING["targets"])
@pytest.mark.parametrize("kind", ["CNF", "NF"])
def test_flows_have_the_divergence_and_integrate_to_one(kind: str, target: str, size: int) -> None:
    found = []
    for seed in MATCHING["seeds"]:
        flow = trained_flow("06_density_matching", f"{kind}-{target}-{size}-{seed}", size, MATCHING, "data")
        found.append(divergence(flow, get_target(target), MATCHING["evaluation"]))
    expected = metrics("06_density_matching")[f"KL {kind} {target} {size}"]
    assert sum(found) / len(found) == pytest.approx(expected, abs=1e-3)
    z = torch.randn(MATCHING["evaluation"], 2, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    untouched = float((normal.log_prob(z) - get_target(target).log_prob(z)).mean())
    assert all(-0.05 < one < untouched for one in found)
    # The last one stands for all. A planar flow towards the data is steep: its density needs many pixels.
    mass = float(density_grid(flow.log_prob, 8, 400).sum()) * (16 / 400) ** 2
    assert mass == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", LIKELIHOOD["sets"])
@pytest.mark.parametrize("kind", ["CNF", "NF"])
def test_flows_have_the_likelihood_and_integrate_to_one(kind: str, name: str) -> None:
    unseen = points(name, LIKELIHOOD["held_out"], 10**6)
    size = LIKELIHOOD["units"] if kind == "CNF" else LIKELIHOOD["layers"]
    found = []
    for seed in LIKELIHOOD["seeds"]:
        file = f"{kind}-{name.replace(' ', '-')}-{seed}"
        flow = trained_flow("07_maximum_likelihood", file, size, LIKELIHOOD, "base")
        with torch.no_grad():
            found.append(float(flow.log_prob(unseen).mean()))
        mass = float(density_grid(flow.log_prob, 8, 200).sum()) * (16 / 200) ** 2
        assert mass == pytest.approx(1, abs=0.01)
    normal = torch.distributions.MultivariateNormal(unseen.mean(0), unseen.T.cov())
    assert min(found) > float(normal.log_prob(unseen).mean())
    expected = metrics("07_maximum_likelihood")[f"log p {kind} {name}"]
    assert sum(found) / len(found) == pytest.approx(expected, abs=1e-3)


# Table 2 and Figure 7 --------------------------------------------------------------------------------------------

SPIRALS = PARAMETERS["08_spirals"]


@pytest.mark.parametrize("n", SPIRALS["observations"])
@pytest.mark.parametrize("model", ["latent ODE", *spirals.RNNS])
def test_models_of_spirals_have_the_error(model: str, n: int) -> None:
    found = []
    for seed in SPIRALS["seeds" if model == "latent ODE" else "rnn_seeds"]:
        test = spirals_for(BASE, SPIRALS["test_series"], n, seed, TEST)
        file = (
            RESULTS / "08_spirals" / f"{run_name('base' if model == 'latent ODE' else model, n, seed)}.safetensors"
        )
        if model == "latent ODE":
            errors = latent_ode_errors(load_latent_ode(BASE, file), test)
        else:
            errors = rnn_errors(load_rnn(spirals.RNNS[model], file), test)
        found.append(errors["beyond"])
    # Errors grow on the way beyond the window, and what another processor rounds differently with them.
    assert statistics.median(found) == pytest.approx(metrics("08_spirals")[f"{model}, {n}"], rel=0.02)


def test_models_of_spirals_follow_them() -> None:
    """Points of a spiral have a standard deviation of 3 and more."""
    assert (last_rows("08_spirals/base-*.csv")["inside"] < 1.5).all()
    assert (last_rows("08_spirals/RNN*.csv")["one step"] < 1.5).all()


POISSON = PARAMETERS["10_poisson"]
SOLVER = {"rtol": POISSON["tolerance"], "atol": POISSON["tolerance"]}


@pytest.mark.parametrize("rate", POISSON["rates"])
def test_rates_have_the_error(rate: str) -> None:
    found = []
    for seed in POISSON["seeds"]:
        file = RESULTS / "10_poisson" / f"{rate.replace(' ', '-')}-{seed}.safetensors"
        found.append(poisson.rate_error(poisson.load_rate(rate, file, **SOLVER), rate))
    assert max(found) < 0.25, "a constant at the mean rate is nearly as good"
    assert sum(found) / len(found) == pytest.approx(metrics("10_poisson")[f"error, {rate}"], rel=0.01)


def test_joint_models_have_the_error() -> None:
    found = []
    for seed in POISSON["joint_seeds"]:
        test = draw_oscillators(POISSON["joint_test_series"], POISSON["joint_noise"], 2 * seed + poisson.TEST)
        file = RESULTS / "10_poisson" / f"joint-{seed}.safetensors"
        found.append(poisson.joint_error(poisson.load_joint(POISSON["joint_noise"], file, **SOLVER), test))
    assert geometric_mean(found) == pytest.approx(metrics("10_poisson")["error, joint"], rel=0.01)
