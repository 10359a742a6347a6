"""The committed weights of Table 1 make as many errors as the committed numbers say."""

import json
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from neural_ode.data.mnist import load_mnist
from neural_ode.training.mnist import error_rate
from neural_ode.training.weights import load_classifier

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "paper" / "04_mnist"
ERRORS = pd.read_csv(RUNS / "test_errors.csv")
FIRST = ERRORS.drop_duplicates("network")
ONE_DIGIT = 0.01  # percent of 10,000: another processor may round one of them to the other side


@pytest.mark.parametrize("row", list(FIRST.itertuples(index=False)), ids=lambda row: row[0])
def test_weights_reproduce_the_test_error(row: tuple[str, int, float]) -> None:
    network, seed, expected = row
    test = load_mnist(ROOT / "data" / "mnist").test
    assert len(test.labels) == 10_000
    how = {"rtol": 1e-3, "atol": 1e-3}  # of params/paper.yaml
    model = load_classifier(network, RUNS / f"{network.replace(' ', '-')}-{seed}.safetensors", **how)
    assert error_rate(model, test) == pytest.approx(expected, abs=1.5 * ONE_DIGIT)


def test_metrics_are_the_means_over_seeds() -> None:
    metrics = json.loads((ROOT / "figures" / "paper" / "04_mnist.json").read_text())
    by_network = defaultdict(list)
    for network, _, error in ERRORS.itertuples(index=False):
        by_network[network].append(error)
    for network, errors in by_network.items():
        assert metrics[f"{network} error %"] == pytest.approx(sum(errors) / len(errors))
