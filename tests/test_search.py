"""The search for a training recipe."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from neural_ode import NonFiniteError, StepSizeUnderflowError
from reproduction.experiments.search import first_stable, ranked, ranked_by_runs
from reproduction.results import Run, Store, csv_bytes
from reproduction.sweep import SweepError


def test_candidates_are_ranked_by_mean_loss_and_one_candidate_needs_no_trial() -> None:
    losses = {0.1: {"a": 1.0, "b": 4.0}, 0.2: {"a": 2.0, "b": 2.0}, 0.3: {"a": 0.0, "b": 5.5}}
    rates, trials = ranked({"NF": [0.5], "CNF": list(losses)}, lambda kind, rate: losses[rate])
    assert rates == {"NF": [0.5], "CNF": [0.2, 0.1, 0.3]}
    assert [row["mean"] for row in trials] == [2.5, 2.0, 2.75]
    assert trials[0] == {"model": "CNF", "candidate": 0.1, "a": 1.0, "b": 4.0, "mean": 2.5}


def stiff() -> float:
    raise StepSizeUnderflowError("too stiff")


@pytest.mark.parametrize("bad", [lambda: math.nan, lambda: math.inf, stiff])
def test_what_is_not_finite_or_not_solved_comes_last(bad: Callable[[], float]) -> None:
    def trial(kind: str, rate: float) -> dict[str, float]:
        return {"a": bad() if rate == 0.1 else rate}

    assert ranked({"NF": [0.1, 0.3, 0.2]}, trial)[0] == {"NF": [0.2, 0.3, 0.1]}
    assert ranked({"NF": [0.3, 0.1, 0.2]}, trial)[0] == {"NF": [0.2, 0.3, 0.1]}


def test_a_trial_that_diverges_comes_last() -> None:
    def trial(kind: str, rate: float) -> dict[str, float]:
        if rate > 0.1:
            raise NonFiniteError("diverges")
        return {"a": rate}

    rates, trials = ranked({"NF": [0.2, 0.1]}, trial)
    assert rates == {"NF": [0.1, 0.2]}
    assert trials[0] == {"model": "NF", "candidate": 0.2, "mean": math.inf}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store([tmp_path / "results"], tmp_path / "results", tmp_path / "checkpoints", "compute it")


def losses(*, kind: str, rate: float, log: Path) -> dict[str, bytes]:
    """A run of the tests: a trial."""
    (log / f"{kind}-{rate}").touch()
    rows = [{"name": "a", "loss": math.inf if rate > 1 else rate}, {"name": "b", "loss": 2 * rate}]
    return {".csv": csv_bytes(rows)}


def test_trials_are_runs(store: Store, tmp_path: Path) -> None:
    """Made once, and only where there is something to choose."""
    candidates = {"two words": {"0.3": 0.3, "2": 2.0, "0.1": 0.1}, "CNF": {"0.5": 0.5}}

    def search() -> tuple[dict[str, dict[str, float]], list[dict[str, object]]]:
        return ranked_by_runs(
            store, losses, candidates, lambda kind, rate: {"kind": kind, "rate": rate}, log=tmp_path
        )

    order, rows = search()
    assert {kind: list(best.items()) for kind, best in order.items()} == {
        "two words": [("0.1", 0.1), ("0.3", 0.3), ("2", 2.0)],
        "CNF": [("0.5", 0.5)],
    }
    assert [row["mean"] for row in rows] == pytest.approx([0.45, math.inf, 0.15])
    assert rows[1] == {"model": "two words", "candidate": 2.0, "a": math.inf, "b": 4.0, "mean": math.inf}
    made = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert made == ["two words-0.1", "two words-0.3", "two words-2.0"]
    for name in made:
        (tmp_path / name).unlink()
    assert search() == (order, rows)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    assert store.used == {f"search/two-words-{name}" for name in candidates["two words"]}


def trained(*, rate: float, seed: int) -> dict[str, bytes]:
    """A run of the tests: a training that diverges with a large rate."""
    if rate > 0.15:
        raise StepSizeUnderflowError(f"{rate} is too large")
    if rate < 0:
        raise ValueError("a mistake")
    return {".csv": csv_bytes([{"rate": rate}])}


def test_the_first_stable_candidate_is_taken_and_the_others_are_noted(store: Store) -> None:
    tried = []

    def train(rate: float, seeds: int) -> dict[str, Run]:
        tried.append(rate)
        points = {f"run-{seed}": {"rate": rate, "seed": seed} for seed in range(seeds)}
        return store.obtain(trained, points, label="training")

    def take(candidates: dict[str, float], seeds: int = 1) -> tuple[float, dict[str, Run]]:
        return first_stable(store, trained, "two words", candidates, {"size": 1}, lambda x: train(x, seeds))

    candidates = {"large": 0.3, "small": 0.05, "medium": 0.1}
    rate, runs = take(candidates)
    assert (rate, runs["run-0"].table()["rate"].item()) == (0.05, 0.05)
    assert tried == [0.3, 0.05]
    note = store.folders[0] / "diverged" / "two-words-large.json"
    assert "0.3 is too large" in note.read_text()
    # A further seed does not try again what diverged.
    assert take(candidates, seeds=2)[0] == 0.05
    assert tried == [0.3, 0.05, 0.05]
    assert store.used == {"diverged/two-words-large", "run-0", "run-1"}
    with pytest.raises(NonFiniteError, match=r"each of \['huge', 'large'\]"):
        take({"huge": 0.4, "large": 0.3})
    with pytest.raises(SweepError, match="a mistake"):
        take({"wrong": -1.0, "small": 0.05})
