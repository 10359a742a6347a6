"""The committed weights of full scale reproduce the committed numbers."""

import json
from collections import defaultdict
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
from reproduction.experiments.flows import density_grid, divergence
from reproduction.measure.prediction import latent_ode_errors, rnn_errors
from reproduction.models.flows import HyperNetwork, PlanarDynamics, PlanarFlow
from reproduction.models.joint import JointModel
from reproduction.training import poisson
from reproduction.training.loop import read_history
from reproduction.training.mnist import error_rate, load_classifier
from reproduction.training.weights import load_weights, run_of
from reproduction.workspace import Workspace

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "paper"
PARAMETERS = yaml.safe_load((ROOT / "params" / "paper.yaml").read_text())


def metrics(notebook: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((ROOT / "figures" / "paper" / f"{notebook}.json").read_text())
    return found


@pytest.mark.parametrize("folder", sorted(path.name for path in RUNS.iterdir()))
def test_weights_and_histories_are_whole(folder: str) -> None:
    """Each has its checksum, and the one is not there without the other."""
    files = sorted((RUNS / folder).rglob("*.safetensors"))
    assert files
    for file in files:
        run_of(file)
        assert read_history(file.with_suffix(".csv")), file


# Table 1 ---------------------------------------------------------------------------------------------------------

ERRORS = pd.read_csv(RUNS / "04_mnist" / "test_errors.csv")
FIRST = ERRORS.drop_duplicates("network")
ONE_DIGIT = 0.01  # percent of 10,000: another processor may round one of them to the other side


@pytest.mark.parametrize("row", list(FIRST.itertuples(index=False)), ids=lambda row: row[0])
def test_classifiers_make_the_test_error(row: tuple[str, int, float]) -> None:
    network, seed, expected = row
    test = load_mnist(ROOT / "data" / "mnist").test
    assert len(test.labels) == 10_000
    how = {"rtol": 1e-3, "atol": 1e-3}  # of params/paper.yaml
    file = RUNS / "04_mnist" / f"{network.replace(' ', '-')}-{seed}.safetensors"
    assert error_rate(load_classifier(network, file, **how), test) == pytest.approx(expected, abs=1.5 * ONE_DIGIT)


def last_rows(pattern: str) -> pd.DataFrame:
    """The ends of trainings, by file."""
    files = sorted(RUNS.glob(pattern))
    assert files
    return pd.DataFrame([read_history(file)[-1] for file in files], index=[file.stem for file in files])


def test_every_network_has_learned_and_solved() -> None:
    assert (ERRORS["test error (%)"] < 5).all()
    for network in ("RK-Net", "ODE-Net"):
        # dopri5 takes two evaluations to begin and six for a step
        assert (last_rows(f"04_mnist/{network}-*.csv")["nfe_forward"] >= 8).all()


def test_metrics_are_the_means_over_seeds() -> None:
    by_network = defaultdict(list)
    for network, _, error in ERRORS.itertuples(index=False):
        by_network[network].append(error)
    for network, errors in by_network.items():
        assert metrics("04_mnist")[f"{network} error %"] == pytest.approx(sum(errors) / len(errors))


# Figures 4 and 5 -------------------------------------------------------------------------------------------------


def trained_flow(notebook: str, file: str, size: int, parameters: dict[str, Any], leads_to: Any) -> Any:
    if file.startswith("NF"):
        flow: Any = PlanarFlow(2, size, leads_to)
    else:
        how = {"rtol": parameters["tolerance"], "atol": parameters["tolerance"]}
        flow = ContinuousFlow(PlanarDynamics(HyperNetwork(2, size, parameters["continuous"]["hidden"])), 2, **how)
    load_weights(flow, RUNS / notebook / f"{file}.safetensors")
    return flow


MATCHING = PARAMETERS["density_matching"]
LIKELIHOOD = PARAMETERS["maximum_likelihood"]


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

SPIRALS = PARAMETERS["spirals"]


@pytest.mark.parametrize("n", SPIRALS["observations"])
@pytest.mark.parametrize("model", ["latent ODE", *spirals.RNNS])
def test_models_of_spirals_have_the_error(model: str, n: int, tmp_path: Path) -> None:
    work = Workspace("08_spirals", "paper", ROOT, tmp_path)
    found = []
    for seed in SPIRALS["seeds"]:
        test = spirals.spirals_for(spirals.BASE, SPIRALS["test_series"], n, seed, spirals.TEST)
        if model == "latent ODE":
            errors = latent_ode_errors(spirals.trained_latent_ode(work, n, seed), test)
        else:
            errors = rnn_errors(spirals.trained_rnn(work, model, n, seed), test)
        found.append(errors["beyond"])
    # Errors grow on the way beyond the window, and what another processor rounds differently with them.
    assert sum(found) / len(found) == pytest.approx(metrics("08_spirals")[f"{model}, {n}"], rel=0.02)


def test_models_of_spirals_follow_them() -> None:
    """Points of a spiral have a standard deviation of 3 and more."""
    assert (last_rows("08_spirals/base-*.csv")["inside"] < 1.5).all()
    assert (last_rows("08_spirals/RNN*.csv")["one step"] < 1.5).all()


POISSON = PARAMETERS["poisson"]
SOLVER = {"rtol": POISSON["tolerance"], "atol": POISSON["tolerance"]}


@pytest.mark.parametrize("rate", POISSON["rates"])
def test_rates_have_the_error(rate: str) -> None:
    found = []
    for seed in POISSON["seeds"]:
        model = poisson.RateModel(4, poisson.RATES[rate].end, **SOLVER)
        load_weights(model, RUNS / "10_poisson" / f"{rate.replace(' ', '-')}-{seed}.safetensors")
        found.append(poisson.rate_error(model, rate))
    assert max(found) < 0.25, "a constant at the mean rate is nearly as good"
    assert sum(found) / len(found) == pytest.approx(metrics("10_poisson")[f"error, {rate}"], rel=0.01)


def test_joint_models_have_the_error() -> None:
    found = []
    for seed in POISSON["seeds"]:
        test = draw_oscillators(POISSON["joint_test_series"], POISSON["joint_noise"], 2 * seed + 1)
        model = JointModel(2, 4, POISSON["joint_noise"], **SOLVER)
        load_weights(model, RUNS / "10_poisson" / f"joint-{seed}.safetensors")
        found.append(poisson.joint_error(model, test))
    assert sum(found) / len(found) == pytest.approx(metrics("10_poisson")["error, joint"], rel=0.01)
