"""What notebook 02 measures with, against what can be known without it."""

import itertools
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.stats
import torch

from neural_ode import solve
from neural_ode.gradients import Backsolve, Direct
from reproduction.data.mnist import Split
from reproduction.experiments import adjoint
from reproduction.experiments.adjoint.derivatives import hessian_vector_error, time_gradient_error
from reproduction.experiments.adjoint.errors import accuracy
from reproduction.experiments.adjoint.evaluations import backward_evaluations
from reproduction.experiments.adjoint.reversal import reconstruction
from reproduction.experiments.adjoint.seminorm import TRAJECTORIES, seminorm_counts, sizes
from reproduction.experiments.adjoint.seminorm_mnist import IMAGES, ode_net_trial
from reproduction.experiments.trials import Trial, loss_gradient, problems
from reproduction.experiments.wide_networks import TASKS, task
from reproduction.experiments.wide_networks import train as train_task
from reproduction.measure.fits import Interval, median_interval
from reproduction.models.mnist import MnistNet, mnist_net
from reproduction.models.small import Network
from reproduction.models.wide import ControlledEquation, HamiltonianNetwork, Perceptron
from reproduction.training.adjoint import METHODS, my_solver, train, two_networks
from reproduction.training.weights import save_run
from reproduction.workspace import Workspace

ROOT = Path(__file__).parents[1]


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
    assert found["slope"].estimate == pytest.approx(1), "loose tolerances do not count"
    assert found["slope"].n == 4
    assert found["error at the tightest tolerance"] == pytest.approx(3e-8)
    assert found["the same over that of direct"] == pytest.approx(2)
    few = adjoint.exactness(rows[:3], direct[:3])
    assert (few["slope"].low, few["slope"].n) == (None, 2)


def test_a_solve_that_could_not_be_finished_has_an_infinite_error() -> None:
    rows = pd.DataFrame({"tolerance": [1e-4, 1e-5], "error": [0.1, None]}, dtype=object)
    assert adjoint.error_at(rows, 1.1e-5) == math.inf
    assert adjoint.error_at(rows, 0.9e-4) == 0.1
    for other in (rows, rows.assign(error=[0.2, 0.1])):
        assert adjoint.error_ratio(rows, other, 1e-5) == math.inf


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


def test_layers_of_a_perceptron() -> None:
    f = Perceptron(3, 5, 4, 3)
    z = torch.randn(2, 3, dtype=torch.float64)
    first, second, third = (x for x in f.layers if isinstance(x, torch.nn.Linear))
    assert torch.equal(f(torch.tensor(0.0), z), third(torch.tanh(second(torch.tanh(first(z))))))


def test_a_hamiltonian_network_follows_its_energy() -> None:
    torch.manual_seed(0)
    f = HamiltonianNetwork(2, 7)
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(f.energy(z).sum(), z)
    expected = torch.cat([slope[:, 2:], -slope[:, :2]], 1)
    torch.testing.assert_close(f(torch.tensor(0.0), z), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        path = solve(f, z.detach(), [0.0, 3.0], rtol=1e-10, atol=1e-10).y
        torch.testing.assert_close(f.energy(path[-1]), f.energy(path[0]), rtol=1e-8, atol=1e-8)


def test_a_controlled_equation_is_a_change_along_a_series() -> None:
    """`F dX/dt`, with the derivative of the series by finite differences."""
    torch.manual_seed(0)
    frequency, phase = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, 2.5], [0.3, -1.0]))
    f, z = ControlledEquation(3, 5, frequency, phase), torch.randn(2, 3, dtype=torch.float64)

    def series(t: float) -> torch.Tensor:
        return torch.stack([torch.full((2,), t, dtype=torch.float64), torch.sin(frequency * t + phase)], 1)

    change = (series(0.7 + 1e-6) - series(0.7 - 1e-6)) / 2e-6
    by_time, by_value = f.layers(z).chunk(2, 1)
    expected = by_time * change[:, :1] + by_value * change[:, 1:]
    torch.testing.assert_close(f(torch.tensor(0.7), z), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", TASKS)
def test_parameters_outnumber_the_state(name: str) -> None:
    trial = task(name, TRAJECTORIES)
    size = sizes(trial)
    assert size["parameters"] == sum(len(p.reshape(-1)) for p in trial.f.parameters()) > 10 * size["state"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_same_first_examples_and_weights_whatever_their_number(name: str) -> None:
    few, many = task(name, 4), task(name, 64)
    for a, b in zip(few.parts(), many.parts(), strict=True):
        assert torch.equal(a, b[:4])
    assert all(torch.equal(a, b) for a, b in zip(few.f.parameters(), many.f.parameters(), strict=True))
    with torch.no_grad():
        t = torch.tensor(0.2, dtype=torch.float64)
        rows = [few.f(t, few.y0), many.f(t, many.y0)]
    first, all_of_them = (x[0] if isinstance(x, tuple) else x for x in rows)
    torch.testing.assert_close(all_of_them[:4], first)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_learned(name: str) -> None:
    trial = task(name, 16)
    assert train_task(trial, 12) < train_task(task(name, 16), 1)


def test_the_targets_of_spirals_and_swings() -> None:
    """The losses are zero where they should be: at the closed form, and at what the pendulum does."""
    spirals = task("latent dynamics", 4)
    angle = torch.tensor(4.0, dtype=torch.float64)  # two units of time, two radians each
    turn = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    later = math.exp(-0.2) * spirals.y0[:, :2] @ turn
    assert spirals.loss(torch.cat([later, torch.ones(4, 2)], 1)) < 1e-20
    swings = task("Hamiltonian network", 4)
    path = solve(adjoint.Pendulum(damping=0.0), swings.y0, [0.0, 2.0], rtol=1e-10, atol=1e-10).y
    assert swings.loss(path[-1]) < 1e-14


def test_seminorm_counts_and_errors() -> None:
    trial = task("perceptron, 2 numbers", 3)
    rows = seminorm_counts(trial, [1e-3, 1e-5], [1.0, 1e4])
    assert [(row["tolerance"], row["scale"]) for row in rows] == list(itertools.product([1e-3, 1e-5], [1.0, 1e4]))
    how = {"rtol": 1e-5, "atol": 1e-5}
    exact, _ = loss_gradient(trial, method="dopri8", rtol=1e-11, atol=1e-11, gradient=Direct())
    found, stats = loss_gradient(trial, gradient=Backsolve(norm="seminorm"), **how)
    assert (rows[2]["forward"], rows[2]["seminorm"]) == (stats.nfe, stats.backward.nfe)
    assert rows[2]["error, seminorm"] == pytest.approx(float((found - exact).norm() / exact.norm()), rel=0.2)
    loss = trial.loss(solve(trial.f, trial.y0, [0.0, 1.0], **how).y[-1]).item()
    assert rows[2]["loss"] == rows[3]["loss"] == pytest.approx(loss)
    for row in rows:
        assert row["saved"] == 1 - row["seminorm"] / row["all"]
        assert row["seminorm"] == row["quadrature"], "both leave out what does not feed back"
        assert row["state"] == 6
    assert rows[3]["all"] > rows[2]["all"], "a larger loss has larger gradients"


def test_the_ode_net_of_the_counts_is_the_network() -> None:
    """Its loss is that of the whole network, and only the dynamics have parameters."""
    torch.manual_seed(0)
    model = mnist_net("ODE-Net", rtol=1e-8, atol=1e-8).eval()
    assert isinstance(model, MnistNet)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (IMAGES, 1, 28, 28), generator=generator).to(torch.uint8)
    labels = torch.tensor([3, 5])
    trial = ode_net_trial(model, Split(images, labels))
    assert sizes(trial) == {"parameters": 75_392, "state": 64 * 36 * IMAGES}
    assert all(p.requires_grad for p in trial.f.parameters())
    assert not model.head[-1].weight.requires_grad
    with torch.no_grad():
        end = solve(trial.f, trial.y0, [trial.start, trial.end], rtol=1e-8, atol=1e-8).y[-1]
        expected = torch.nn.functional.cross_entropy(model(images.double() / 255), labels)
    assert trial.loss(end).item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_is_saved_by_problem() -> None:
    rows = [("a", "x", 0.2), ("b", "x", None), ("a", "x", 0.4), ("a", "y", 0.1), ("a", "x", 0.9), ("c", "x", -0.1)]
    counts = pd.DataFrame(rows, columns=["network", "weights", "saved"], dtype=object)
    found = adjoint.saved_by_problem(counts, ["network", "weights"])
    assert found.to_dict() == pytest.approx({("a", "x"): 40.0, ("a", "y"): 10.0, ("c", "x"): -10.0})


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
    "seminorm_tolerances": [1e-2],
    "seminorm_scales": [1.0],
    "seminorm_training": 1,
    "device": "cpu",
}


def made(folder: Path) -> dict[str, int]:
    """When the files of the runs were written."""
    files = (x for x in folder.rglob("*.*") if x.name != "provenance.json")
    return {x.relative_to(folder).as_posix(): x.stat().st_mtime_ns for x in files}


def test_results_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduction.experiments.adjoint.errors.MAX_STEPS", 50)
    monkeypatch.setattr("reproduction.experiments.trials.REFERENCE", 1e-6)
    torch.manual_seed(0)
    save_run(mnist_net("ODE-Net"), [], tmp_path / "results" / "quick" / "04_mnist", "ODE-Net-0")
    (tmp_path / "data").symlink_to(ROOT / "data")
    work = Workspace("02_adjoint", "quick", tmp_path, tmp_path)
    found = adjoint.results(work, **SMALL)
    folder = tmp_path / "results" / "quick" / "02_adjoint"
    before = made(folder)
    again = adjoint.results(Workspace("02_adjoint", "quick", tmp_path, tmp_path), **SMALL)
    assert made(folder) == before
    for table in ("accuracy", "reconstruction", "evaluations", "seminorm"):
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
    rows = found.seminorm.set_index(["network", "weights"])
    assert len(rows) == 2 * (len(TASKS) + 1)
    trial, trained_on = task("latent dynamics", TRAJECTORIES), task("latent dynamics", 64)
    train_task(trained_on, 1)
    trial.f.load_state_dict(trained_on.f.state_dict())
    (row,) = seminorm_counts(trial, [1e-2], [1.0])
    assert rows.loc["latent dynamics", "trained"][list(row)].to_dict() == row
    torch.manual_seed(0)
    assert found.losses["my_solver"] == train(Network(), 1, gradient="backsolve", method=my_solver)

    adjoint.results(work, **{**SMALL, "flow_training": 2, "count_tolerances": [1e-1]})
    changed = {name for name, time in made(folder).items() if time != before.get(name)}
    flow = {"flow.csv", "flow.safetensors", "reconstruction/continuous-flow.csv"}
    assert changed - flow == {name for name in before if name.startswith("evaluations/")}
    assert flow <= changed
