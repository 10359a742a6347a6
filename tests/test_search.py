"""The search for a training recipe."""

import math
from collections.abc import Callable

import pytest

from neural_ode import NonFiniteError, StepSizeUnderflowError
from reproduction.experiments.search import first_stable, ranked


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


def test_a_candidate_that_diverges_comes_last_and_the_first_stable_one_is_taken() -> None:
    def train(rate: float) -> dict[str, float]:
        if rate > 0.1:
            raise NonFiniteError("diverges")
        return {"a": rate}

    rates, trials = ranked({"NF": [0.2, 0.1]}, lambda kind, rate: train(rate))
    assert rates == {"NF": [0.1, 0.2]}
    assert trials[0] == {"model": "NF", "candidate": 0.2, "mean": math.inf}
    assert first_stable([0.3, 0.05, 0.1], train) == (0.05, {"a": 0.05})
    assert first_stable([0.3, 0.1], lambda rate: stiff() if rate > 0.2 else rate) == (0.1, 0.1)
    with pytest.raises(NonFiniteError, match=r"each of \[0.2, 0.3\]"):
        first_stable([0.2, 0.3], train)
