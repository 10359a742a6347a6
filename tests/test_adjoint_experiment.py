"""What notebook 02 measures with, against what can be known without it."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.stats
import torch

from neural_ode import solve
from reproduction.experiments import adjoint
from reproduction.experiments.adjoint.derivatives import hessian_vector_error, time_gradient_error
from reproduction.experiments.adjoint.errors import accuracy
from reproduction.experiments.adjoint.evaluations import backward_evaluations
from reproduction.experiments.adjoint.reversal import reconstruction
from reproduction.experiments.trials import Trial, problems
from reproduction.measure.fits import Interval, median_interval
from reproduction.models.small import Network
from reproduction.training.adjoint import METHODS, my_solver, train, two_networks
from reproduction.workspace import Workspace


@pytest.fixture
def trials() -> dict[str, Trial]:
    return problems(Network())


def test_adjoint_pieces_end_at_the_gradient_of_backpropagation() -> None:
    f = adjoint.Pendulum()
    y0 = torch.tensor([1.2, -0.4], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.7, 1.5], dtype=torch.float64)
    pieces = adjoint.adjoint_pieces(f, y0.detach(), t, lambda z: 2 * z, tolerance=1e-10)
    loss = solve(f, y0, t, rtol=1e-11, atol=1e-11).y[1:].square().sum()
    (direct,) = torch.autograd.grad(loss, y0)
    assert [float(p.t[0]) for p in pieces] == [1.5, 0.7]
    torch.testing.assert_close(pieces[-1].a[-1], direct, rtol=1e-7, atol=1e-7)


def test_accuracy_names_what_fails(trials: dict[str, Trial]) -> None:
    assert all(row["error"] < 1e-5 for row in accuracy(trials["random network"], [1e-7]))
    rows = accuracy(trials["stiff"], [1e-7])
    error = {row["choice"]: row["error"] for row in rows}
    assert list(error) == list(adjoint.CHOICES)
    assert error["direct"] < 1e-3
    assert error["reversible"] > 1
    assert [row["choice"] for row in rows if row["drifted"]] == ["reversible"]


def test_how_exact_a_gradient_is() -> None:
    tolerances = [1e-3, 1e-5, 1e-6, 1e-7, 1e-8]
    rows = pd.DataFrame({"tolerance": tolerances, "error": [0.5] + [3 * x for x in tolerances[1:]]})
    direct = rows.assign(error=rows["error"] / 2)
    found = adjoint.exactness(rows, direct)
    assert found["slope"].slope == pytest.approx(1), "loose tolerances do not count"
    assert found["slope"].n == 4
    assert found["error at the tightest tolerance"] == pytest.approx(3e-8)
    assert found["the same over that of direct"] == pytest.approx(2)


def test_a_solve_that_could_not_be_finished_has_an_infinite_error() -> None:
    rows = pd.DataFrame({"tolerance": [1e-4, 1e-5], "error": [0.1, None]}, dtype=object)
    assert adjoint.error_at(rows, 1.1e-5) == math.inf
    assert adjoint.error_at(rows, 0.9e-4) == 0.1
    assert adjoint.error_ratio(rows, rows.assign(error=[0.2, 0.1]), 1e-5) == math.inf


def test_reconstruction_of_a_pendulum_and_of_a_chaotic_solve(trials: dict[str, Trial]) -> None:
    good = adjoint.Trial(adjoint.Pendulum(), torch.tensor([1.0, 0.0], dtype=torch.float64), 2.0)
    assert reconstruction(good, [1e-6])[0]["error"] < 1e-4
    assert reconstruction(trials["chaotic"], [1e-6]) == [{"tolerance": 1e-6, "error": None}]


def test_a_round_trip_ends_where_it_began_or_says_that_it_did_not(trials: dict[str, Trial]) -> None:
    good = adjoint.Trial(adjoint.Pendulum(), torch.tensor([1.0, 0.0], dtype=torch.float64), 2.0)
    trip = adjoint.round_trip(good, 1e-8, points=20)
    assert trip.error is not None
    assert trip.error < 1e-6
    assert trip.t_back.tolist() == trip.t.tolist()[::-1]
    assert torch.allclose(trip.back.flip(0), trip.there, atol=1e-6)
    bad = adjoint.round_trip(trials["chaotic"], 1e-4)
    assert bad.error is None
    assert 1 < len(bad.t_back) < len(bad.t)
    assert bad.back.shape == (len(bad.t_back), 3)


def test_times_and_second_derivatives(trials: dict[str, Trial]) -> None:
    trial = trials["random network"]
    assert time_gradient_error(trial, "backsolve") < 1e-6
    assert hessian_vector_error(trial) < 1e-6


def test_seminorm_and_quadrature_are_counted(trials: dict[str, Trial]) -> None:
    (row,) = backward_evaluations(trials["random network"], [1e-5])
    assert row["saved"] == 1 - row["seminorm"] / row["all"]
    assert row["quadrature"] > 6


def test_ten_lines_solve_an_equation() -> None:
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = my_solver(lambda t, y: -t * y, y0, [0.0, 1.0, 2.0], 1e-3, 1e-3)
    exact = torch.tensor([[1.0], [-0.5], [-2.0]], dtype=torch.float64)
    exact[1:] = exact[1:].exp()
    torch.testing.assert_close(found, exact * y0, rtol=1e-7, atol=0)


@pytest.mark.parametrize("n", [6, 9, 17, 30])
def test_median_interval_covers_95_percent(n: int) -> None:
    found = median_interval(list(range(n)))
    left = found.low
    assert found.high == n - 1 - left
    assert 1 - 2 * scipy.stats.binom.cdf(left, n, 0.5) >= 0.95 > 1 - 2 * scipy.stats.binom.cdf(left + 1, n, 0.5)
    assert found.estimate == (n - 1) / 2


def test_median_of_few_values_has_no_interval() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == Interval(2.0, None, None, 3, "median")


SMALL: dict[str, Any] = {
    "tolerances": [1e-1, 1e-2],
    "count_tolerances": [1e-2],
    "training": 2,
    "flow_training": 1,
    "black_box_training": 1,
    "device": "cpu",
}


def made(folder: Path) -> dict[str, int]:
    """When the files of the runs were written."""
    files = (x for x in folder.rglob("*.*") if x.name != "provenance.json")
    return {x.relative_to(folder).as_posix(): x.stat().st_mtime_ns for x in files}


def test_results_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduction.experiments.adjoint.errors.MAX_STEPS", 50)
    monkeypatch.setattr("reproduction.experiments.trials.REFERENCE", 1e-6)
    work = Workspace("02_adjoint", "quick", tmp_path, tmp_path)
    found = adjoint.results(work, **SMALL)
    folder = tmp_path / "results" / "quick" / "02_adjoint"
    before = made(folder)
    again = adjoint.results(Workspace("02_adjoint", "quick", tmp_path, tmp_path), **SMALL)
    assert made(folder) == before
    for table in ("accuracy", "reconstruction", "evaluations"):
        assert getattr(again, table).equals(getattr(found, table))
    assert (again.time_errors, again.hessian, again.losses) == (found.time_errors, found.hessian, found.losses)

    trained = two_networks()[1]
    train(trained, 2)
    assert torch.equal(trained.layers[0].weight, again.trials["trained network"].f.layers[0].weight)
    for name, trial in problems(trained).items():
        rows = pd.DataFrame(accuracy(trial, [1e-1, 1e-2])).astype({"error": float})
        same = found.accuracy[found.accuracy["problem"] == name].drop(columns="problem").reset_index(drop=True)
        pd.testing.assert_frame_equal(same, rows, check_exact=True)
        if name == "trained network":
            assert found.hessian == hessian_vector_error(trial)
    assert list(found.accuracy["problem"].unique()) == list(found.trials)
    assert list(found.losses) == list(METHODS)
    torch.manual_seed(0)
    assert found.losses["my_solver"] == train(Network(), 1, gradient="backsolve", method=my_solver)

    adjoint.results(work, **{**SMALL, "flow_training": 2, "count_tolerances": [1e-1]})
    changed = {name for name, time in made(folder).items() if time != before.get(name)}
    flow = {"flow.csv", "flow.safetensors", "reconstruction/continuous-flow.csv"}
    assert changed - flow == {name for name in before if name.startswith("evaluations/")}
    assert flow <= changed
