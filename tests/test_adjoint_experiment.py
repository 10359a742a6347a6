"""What notebook 02 measures with, against what can be known without it."""

import pytest
import scipy.stats
import torch

from neural_ode import solve
from reproduction.experiments import adjoint
from reproduction.measure.fits import median_interval


def test_adjoint_pieces_end_at_the_gradient_of_backpropagation() -> None:
    f = adjoint.Pendulum()
    y0 = torch.tensor([1.2, -0.4], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.7, 1.5], dtype=torch.float64)
    pieces = adjoint.adjoint_pieces(f, y0.detach(), t, lambda z: 2 * z, tolerance=1e-10)
    loss = solve(f, y0, t, rtol=1e-11, atol=1e-11).y[1:].square().sum()
    (direct,) = torch.autograd.grad(loss, y0)
    assert [float(p.t[0]) for p in pieces] == [1.5, 0.7]
    torch.testing.assert_close(pieces[-1].a[-1], direct, rtol=1e-7, atol=1e-7)


def test_accuracy_names_what_fails() -> None:
    trials = {k: v for k, v in adjoint.problems(1).items() if k in ("random network", "stiff")}
    rows = adjoint.accuracy(trials, [1e-7])
    error = {(r["problem"], r["choice"]): r["error"] for r in rows}
    assert all(error["random network", choice] < 1e-5 for choice in adjoint.CHOICES)
    assert error["stiff", "direct"] < 1e-3
    assert error["stiff", "reversible"] > 1
    assert [r["choice"] for r in rows if r["drifted"]] == ["reversible"]


def test_slope_and_worst_ratio() -> None:
    rows = [{"tolerance": 10.0**-k, "error": 3 * 10.0**-k} for k in range(3, 8)]
    assert adjoint.error_slope(rows)["estimate"] == pytest.approx(1)
    assert adjoint.worst_ratio(rows) == pytest.approx(3)
    failed = [{**row, "error": None} for row in rows]
    assert adjoint.error_slope(failed)["high"] == 0
    assert adjoint.worst_ratio([*rows, *failed]) == adjoint.FAILED


def test_reconstruction_of_a_pendulum_and_of_a_chaotic_solve() -> None:
    good = adjoint.Trial(adjoint.Pendulum(), torch.tensor([1.0, 0.0], dtype=torch.float64), 2.0)
    bad = adjoint.problems(1)["chaotic"]
    rows = adjoint.reconstruction({"good": good, "bad": bad}, [1e-6])
    assert rows[0]["error"] < 1e-4
    assert rows[1]["error"] is None


def test_a_round_trip_ends_where_it_began_or_says_that_it_did_not() -> None:
    good = adjoint.Trial(adjoint.Pendulum(), torch.tensor([1.0, 0.0], dtype=torch.float64), 2.0)
    trip = adjoint.round_trip(good, 1e-8, points=20)
    assert trip.error is not None
    assert trip.error < 1e-6
    assert trip.t_back.tolist() == trip.t.tolist()[::-1]
    assert torch.allclose(trip.back.flip(0), trip.there, atol=1e-6)
    bad = adjoint.round_trip(adjoint.problems(1)["chaotic"], 1e-4)
    assert bad.error is None
    assert 1 < len(bad.t_back) < len(bad.t)
    assert bad.back.shape == (len(bad.t_back), 3)


def test_times_and_second_derivatives() -> None:
    trial = adjoint.problems(1)["random network"]
    assert adjoint.time_gradient_error(trial, "backsolve") < 1e-6
    assert adjoint.hessian_vector_error(trial) < 1e-6


def test_seminorm_and_quadrature_are_counted() -> None:
    (row,) = adjoint.backward_evaluations({"a": adjoint.problems(1)["random network"]}, [1e-5])
    assert row["saved"] == 1 - row["seminorm"] / row["all"]
    assert row["quadrature"] > 6


@pytest.mark.parametrize("n", [6, 9, 17, 30])
def test_median_interval_covers_95_percent(n: int) -> None:
    found = median_interval(list(range(n)))
    left = found.low
    assert found.high == n - 1 - left
    assert 1 - 2 * scipy.stats.binom.cdf(left, n, 0.5) >= 0.95 > 1 - 2 * scipy.stats.binom.cdf(left + 1, n, 0.5)
    assert found.estimate == (n - 1) / 2


def test_median_of_few_values_has_no_interval() -> None:
    assert median_interval([3.0, 1.0, 2.0]).as_dict() == {"estimate": 2.0, "low": None, "high": None, "n": 3}
