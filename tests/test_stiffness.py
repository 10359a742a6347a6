"""Notebook 15: stability of tableaus, stiff problems, what solvers cost on them, and their gradients."""

import io
import math

import numpy as np
import pandas as pd
import pytest
import scipy.integrate
import torch

from neural_ode import METHODS, solve
from reproduction.experiments.stiffness import SOLVERS, cheapest
from reproduction.experiments.stiffness.costs import costs_of
from reproduction.experiments.stiffness.gradients import EXACT, Amplitude, choices, gradients_of
from reproduction.experiments.stiffness.network import RATE, StiffNetwork, network_run, snapshot, target
from reproduction.experiments.stiffness.problems import (
    FAMILIES,
    Problem,
    network_problem,
    problem,
    reference,
    relative_error,
    stiffness,
)
from reproduction.measure.stability import real_stability_limit, stability_function
from reproduction.training.weights import load_weights

# Stability -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limit"),
    [("euler", 2.0), ("rk4", 2.7852935634), ("bosh3", 2.5127453266), ("dopri5", 3.3065678), ("tsit5", 3.5068)],
)
def test_limits_that_are_known(name: str, limit: float) -> None:
    """Those of HW, section IV.2, and of Tsitouras (2011)."""
    assert real_stability_limit(METHODS[name].tableau) == pytest.approx(limit, rel=1e-4)


@pytest.mark.parametrize("name", ["implicit_euler", "trapezoid", "kvaerno5", "radauIIA5", "gl6", "sdirk2"])
def test_implicit_methods_have_no_limit(name: str) -> None:
    assert real_stability_limit(METHODS[name].tableau) == math.inf


def test_stability_functions_in_closed_form() -> None:
    z = -0.7 + 0.4j
    assert stability_function(METHODS["euler"].tableau, z) == pytest.approx(1 + z)
    assert stability_function(METHODS["trapezoid"].tableau, z) == pytest.approx((1 + z / 2) / (1 - z / 2))
    assert stability_function(METHODS["rk4"].tableau, z) == pytest.approx(1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24)
    radau = (1 + 2 * z / 5 + z**2 / 20) / (1 - 3 * z / 5 + 3 * z**2 / 20 - z**3 / 60)  # HW, table IV.5.7
    assert stability_function(METHODS["radauIIA5"].tableau, z) == pytest.approx(radau)


@pytest.mark.parametrize("name", ["dopri5", "tsit5", "kvaerno5"])
def test_a_step_multiplies_by_the_stability_function(name: str) -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    for length in (0.5, 2.9, 3.4):
        made = solve(lambda t, y: -y, y0, [0.0, length], method=name, step_size=length).y[-1].item()
        assert made == pytest.approx(stability_function(METHODS[name].tableau, -length).real, rel=1e-9)


# Problems --------------------------------------------------------------------------------------------------------

EASY = {"relaxation": 30.0, "Van der Pol": 5.0, "Robertson": 4.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_references_against_scipy(family: str) -> None:
    given = problem(family, EASY[family])
    expected = scipy.integrate.solve_ivp(
        lambda t, y: given.f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy(),
        (given.times[0], given.times[-1]),
        given.y0.numpy(),
        method="LSODA",
        rtol=1e-11,
        atol=1e-13,
        t_eval=given.times[1:],
    )
    assert relative_error(torch.from_numpy(expected.y.T), reference(given), given) < 1e-7


def test_the_published_end_of_robertsons_problem() -> None:
    """At t = 40: the reference values of CVODE's example `cvRoberts_dns`."""
    (*_, end) = reference(problem("Robertson", 40.0))
    expected = torch.tensor([7.158270687193941e-1, 9.185534764557338e-6, 2.841637457459413e-1])
    torch.testing.assert_close(end, expected.double(), rtol=1e-6, atol=0)


def test_errors_are_measured_in_sizes_of_components() -> None:
    given = problem("Robertson", 1.0)
    expected = torch.ones(2, 3, dtype=torch.float64)
    found = expected.clone()
    found[1, 1] += 1e-6
    assert relative_error(found, expected, given) == pytest.approx(0.1)
    found[0, 0] = math.nan
    assert relative_error(found, expected, given) == math.inf


def test_stiffness_of_a_rate_is_the_rate_times_the_interval() -> None:
    given = problem("relaxation", 70.0)
    assert stiffness(given, reference(given)) == pytest.approx(140)
    rates = torch.tensor([[-3.0, 100.0], [0.0, -20.0]], dtype=torch.float64)
    times = [0.0, 0.5]
    linear = Problem(lambda t, y: rates @ y, torch.ones(2).double(), times, torch.ones(2).double())
    assert stiffness(linear, torch.ones(1, 2).double()) == pytest.approx(10)
    growing = linear._replace(f=lambda t, y: y)
    assert stiffness(growing, torch.ones(1, 2).double()) == 0


# Costs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def costs() -> pd.DataFrame:
    rows = [
        {**row, "family": "relaxation", "parameter": k}
        for k in (100.0, 1000.0)
        for row in costs_of(problem("relaxation", k), [1e-4, 1e-6], 1200, 1)
    ]
    return pd.DataFrame(rows)


def test_every_solve_is_there(costs: pd.DataFrame) -> None:
    easy = costs[costs["parameter"] == 100]
    assert list(easy["solver"].unique()) == list(SOLVERS)
    assert len(easy) == 2 * len(SOLVERS)
    assert (easy["seconds"] > 0).all()
    tight = easy[easy["tolerance"] == 1e-6]
    assert (tight["error"] < 2e-5).all()
    assert easy["stiffness"].to_numpy() == pytest.approx(200)


def test_what_needs_more_steps_is_given_up() -> None:
    """Once: tighter tolerances are not tried."""
    rows = pd.DataFrame(costs_of(problem("relaxation", 100.0), [1e-4, 1e-6], 12, 1))
    given_up = rows[rows["nfe"].isna()]
    assert {"dopri5", "tsit5", "adams", "VODE, Adams"} <= set(given_up["solver"])
    assert given_up[["error", "seconds"]].isna().all().all()
    assert (rows.groupby("solver").size()[["dopri5", "tsit5", "VODE, Adams"]] == 1).all()
    assert "Radau IIA" not in set(given_up["solver"])


def test_explicit_methods_pay_for_stiffness_and_implicit_ones_do_not(costs: pd.DataFrame) -> None:
    found = cheapest(costs, 1e-3).set_index(["parameter", "solver"])["nfe"].astype(float)
    growth = found[1000.0] / found[100.0]
    assert (growth[["dopri5", "tsit5", "adams"]] > 4).all()
    assert (growth[["VODE, BDF", "kvaerno5", "Radau IIA", "VODE, Adams with Newton"]] < 3).all()
    limit = real_stability_limit(METHODS["dopri5"].tableau)
    assert found[1000.0]["dopri5"] == pytest.approx(6 * 2000 / limit, rel=0.15)


def test_the_cheapest_solve_that_is_accurate() -> None:
    rows = [("a", 1, 1e-3, 10), ("a", 1, 1e-5, 30), ("a", 1, 1e-6, 20), ("b", 1, 1e-3, 5), ("a", 2, 1e-5, None)]
    table = pd.DataFrame(rows, columns=["solver", "parameter", "error", "nfe"]).assign(family="x")
    found = cheapest(table.dropna(), 1e-4)
    assert found[["solver", "parameter", "nfe"]].to_numpy().tolist() == [["a", 1, 20]]


# The network -----------------------------------------------------------------------------------------------------


def test_the_network_becomes_stiff_as_it_learns(tmp_path) -> None:
    made = network_run(iterations=[20, 80], hidden=16, starts=6, lr=1e-2, tolerance=1e-3, seed=0)
    history = pd.read_csv(io.BytesIO(made[".csv"]))
    assert list(history["iteration"]) == [20, 80]
    assert history["loss"].is_monotonic_decreasing
    found = []
    for iteration in (20, 80):
        (tmp_path / "weights").write_bytes(made[snapshot(iteration)])
        model = StiffNetwork(16)
        load_weights(model, tmp_path / "weights")
        given = network_problem(model, torch.tensor([1.0, 0.0]).double(), 2.0)
        found.append(stiffness(given, reference(given)))
    assert found[1] > 1.5 * found[0]


def test_what_the_network_learns() -> None:
    state = torch.tensor([[2.0, 0.0], [0.5, math.pi / 3]], dtype=torch.float64)
    assert target(torch.tensor(0.0), state).tolist() == [[-RATE, 1.0], pytest.approx([0.0, 1.0], abs=1e-9)]
    assert StiffNetwork(4)(torch.tensor(0.0), state)[:, 1].tolist() == [1.0, 1.0]


# Gradients -------------------------------------------------------------------------------------------------------


def test_the_amplitude_is_a_solution() -> None:
    f = Amplitude(50.0)
    t = torch.linspace(0, 2, 5, dtype=torch.float64, requires_grad=True)
    g = f.followed(t)
    (slope,) = torch.autograd.grad(g.sum(), t)
    torch.testing.assert_close(f(t, g), slope)
    (gradient,) = torch.autograd.grad(f.followed(torch.tensor(2.0).double()), f.amplitude)
    assert gradient.item() == pytest.approx(EXACT)


def test_stored_states_save_the_gradient_and_backsolve_loses_it() -> None:
    def errors(gradient: str) -> list[float | None]:
        return [row["error"] for row in gradients_of("kvaerno5", gradient, [1.0, 100.0], 1e-6, 300)]

    for gradient in ("direct", "recursive_checkpoint", "interpolating"):
        assert np.all(np.array(errors(gradient)) < 1e-4)
    easy, stiff = errors("backsolve")
    assert easy is not None
    assert easy < 1e-4
    assert stiff is None or stiff > 0.1


def test_every_way_to_differentiate_is_compared() -> None:
    assert len(choices()) == 9
    assert ("dopri5", "reversible") in choices()
