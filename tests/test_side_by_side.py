"""Trainings in turns: each as if it were alone, and one that fails leaves the others alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_ode.errors import SolverError
from neural_ode.solution import Statistics
from reproduction.training.adam import fit_with_adam
from reproduction.training.side_by_side import fit_side_by_side

TRAINING = {"steps": 12, "epochs": 3, "lr": 0.05}
COMMON: dict[str, Any] = {"settings": {"seed": 0}, "code": Path(__file__), "label": "lines"}


class Line(nn.Module):
    """A line that fails at some step: by an error, by a loss that is NaN, or by a gradient that is."""

    def __init__(self, slope: float, fails_at: int | None = None, with_what: Exception | str = "loss"):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.name, self.calls, self.fails_at, self.with_what = "", 0, fails_at, with_what
        self.stats = Statistics(nfe=7, backward=Statistics(nfe=9))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if self.calls == self.fails_at:
                if isinstance(self.with_what, Exception):
                    raise self.with_what
                if self.with_what == "loss":
                    return self.slope * x * float("nan")
                return self.slope * x + (self.slope - self.slope.detach()).abs().sqrt()  # the slope of √0
        return self.slope * x


def loss(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) - 3 * x).square().mean()


def batch(step: int) -> Tensor:
    return torch.randn(8, generator=torch.Generator().manual_seed(step))


def evaluate(net: nn.Module) -> dict[str, float]:
    return {"error": abs(float(net(torch.ones(1))) - 3)}


def rows_of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["name"] == name]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_each_is_trained_as_if_alone() -> None:
    models = {"near": Line(2.0), "far": Line(-5.0)}
    expected_first = {"near": 1.0, "far": 8.0}
    alone = {name: copy.deepcopy(model) for name, model in models.items()}
    rows = fit_side_by_side(models, loss, batch, evaluate, TRAINING, **COMMON)
    assert len(rows) == 2 * (1 + TRAINING["epochs"])
    for name, model in alone.items():
        history = fit_with_adam(model, loss, batch, evaluate, TRAINING, **COMMON, evaluations=3)
        assert torch.equal(models[name].slope, model.slope)
        own = rows_of(rows, name)
        assert own[0]["error"] == expected_first[name]
        assert [row["steps"] for row in own] == [0, 4, 8, 12]
        assert not any(row["given up"] for row in own)
        for row, expected in zip(own[1:], history, strict=True):
            assert row["error"] == expected["error"]
            assert row["loss"] == pytest.approx(expected["loss"])
        assert own[-1]["seconds"] > own[1]["seconds"] > 0 == own[0]["seconds"]


@pytest.mark.parametrize("failure", [SolverError("a step was too short"), "loss", "gradient"], ids=str)
def test_one_that_fails_is_given_up_and_the_others_go_on(failure: Exception | str) -> None:
    models = {"fails": Line(2.0, fails_at=6, with_what=failure), "goes on": Line(2.0)}
    alone = copy.deepcopy(models["goes on"])
    rows = fit_side_by_side(models, loss, batch, evaluate, TRAINING, **COMMON)
    fit_with_adam(alone, loss, batch, evaluate, TRAINING, **COMMON, evaluations=3)
    assert torch.equal(models["goes on"].slope, alone.slope)
    assert [row["given up"] for row in rows_of(rows, "goes on")] == [False] * 4
    failed = rows_of(rows, "fails")
    assert [row["given up"] for row in failed] == [False, False, True]  # nothing after that epoch
    assert [row["steps"] for row in failed] == [0, 4, 5]
    assert models["fails"].calls == 6
    assert failed[-1]["error"] < failed[-2]["error"]  # the weights of before the step that failed
    assert [row["forward"] for row in failed] == [0, 28, 35]
    assert [row["backward"] for row in failed] == [0, 36, 45]


def test_a_test_that_fails_leaves_a_gap() -> None:
    def sometimes(net: Any) -> dict[str, float]:
        if net.calls == 8:
            raise SolverError("of the test")
        return evaluate(net)

    rows = fit_side_by_side({"line": Line(2.0)}, loss, batch, sometimes, TRAINING, **COMMON)
    assert ["error" in row for row in rows] == [True, True, False, True]


def test_other_errors_end_all_of_it() -> None:
    models = {"broken": Line(2.0, fails_at=2, with_what=TypeError("a mistake")), "good": Line(1.0)}
    with pytest.raises(TypeError, match="a mistake"):
        fit_side_by_side(models, loss, batch, evaluate, TRAINING, **COMMON)


@pytest.mark.parametrize("killed_at", [2, 4, 7])
def test_a_killed_training_goes_on(killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduction.training.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    checkpoint = tmp_path / "lines.pt"

    def models() -> dict[str, Line]:
        found = {"fails": Line(1.0), "good": Line(-1.0)}
        for name, line in found.items():
            line.name = name
        return found

    def failing(net: Any, x: Tensor) -> Tensor:
        if torch.equal(x, batch(5)) and net.name == "fails" and net.training:
            raise SolverError("at the sixth step")
        return loss(net, x)

    def killing(step: int) -> Tensor:
        if step == killed_at:
            raise KeyboardInterrupt
        return batch(step)

    expected_models, again = models(), models()
    expected = fit_side_by_side(expected_models, failing, batch, evaluate, TRAINING, **COMMON)
    with pytest.raises(KeyboardInterrupt):
        fit_side_by_side(models(), failing, killing, evaluate, TRAINING, **COMMON, checkpoint=checkpoint)
    rows = fit_side_by_side(again, failing, batch, evaluate, TRAINING, **COMMON, checkpoint=checkpoint)
    assert without_times(rows) == without_times(expected)
    assert rows_of(rows, "fails")[-1]["given up"]
    for name, model in again.items():
        assert torch.equal(model.slope, expected_models[name].slope)
