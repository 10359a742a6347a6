"""The benchmarks: that they measure what they say. No time is asserted."""

import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from neural_ode import Solution, solve
from reproduction.workspace import project_root

sys.path.insert(0, str(project_root(Path(__file__))))

pytest.importorskip("torchdiffeq")

from benchmarks import contenders
from benchmarks.cases import CASES, Goal, case_rows, deviation
from benchmarks.larger_problems import LARGER, brusselator, brusselator_pattern
from benchmarks.problems import PROBLEMS, arenstorf, lotka_volterra
from benchmarks.report import (
    case_table,
    draw_precision,
    draw_scaling,
    goal_table,
    load,
    machine,
    merge,
    save,
    slopes_table,
    update_readmes,
)
from benchmarks.scaling import AXES, scaling_rows, slopes
from benchmarks.timing import (
    Contender,
    Measured,
    Run,
    Unavailable,
    arrays,
    in_turn,
    measure,
    ratio,
)
from benchmarks.work_precision import precision_rows


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _contender(name: str, calls: list[str]) -> Contender:
    def prepare() -> Run:
        def run() -> tuple[list[float], int]:
            calls.append(name)
            return [1.0], 3

        return run

    return Contender(name, prepare)


def test_contenders_run_in_turn_and_back() -> None:
    calls: list[str] = []
    seconds = in_turn({name: lambda name=name: calls.append(name) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(calls) == "abccbaabc"
    assert all(len(seconds[name]) == 3 and (seconds[name] >= 0).all() for name in "abc")


def test_a_contender_that_cannot_take_part_is_left_out_with_its_reason() -> None:
    def missing() -> Run:
        raise Unavailable("not installed")

    def broken() -> Run:
        raise ValueError("no\nsuch thing")

    calls: list[str] = []
    found, skipped = measure(
        [Contender("missing", missing), _contender("a", calls), Contender("broken", broken)], 0.0, (2, 2)
    )
    assert skipped == {"missing": "not installed", "broken": "ValueError: no"}
    assert list(found) == ["a"]
    assert found["a"].nfe == 3
    assert len(calls) == 4  # two to get ready, two that count


def test_the_budget_decides_how_many_rounds() -> None:
    found, _ = measure([_contender("a", [])], 1e6, (2, 7))
    assert len(found["a"].seconds) == 7
    found, _ = measure([_contender("a", [])], 0.0, (2, 7))
    assert len(found["a"].seconds) == 2


def test_ratio_compares_medians_within_rounds() -> None:
    drift = np.linspace(1, 10, 15)
    assert ratio(3 * drift, drift) == pytest.approx((3, 3, 3))  # a drift that both share says nothing
    noisy = ratio(np.array([2.0, 2.2, 1.8, 2.1, 50.0]), np.ones(5))
    assert noisy.estimate == pytest.approx(2.1)
    assert noisy.low < 2.1 < noisy.high
    assert ratio(np.full(5, 2.5), np.full(5, 2.0), difference=True).estimate == pytest.approx(0.5)


def test_values_are_flattened() -> None:
    flat = arrays((torch.ones(2, requires_grad=True), [np.zeros(3), (1.0,)]))
    assert [part.tolist() for part in flat] == [[1, 1], [0, 0, 0], 1.0]
    assert deviation(flat, flat) == 0
    assert deviation(flat, flat[:2]) is None
    assert deviation([np.array([3.0, 5.0])], [np.array([3.0, 4.0])]) == pytest.approx(0.2)
    assert math.isnan(deviation([np.array([math.nan])], [np.ones(1)]) or 0.0)


def _measured(seconds: float, nfe: int = 10) -> Measured:
    return Measured([], nfe, 0.0, np.full(5, seconds))


@pytest.mark.parametrize(
    ("kind", "bound", "verdict", "value"),
    [
        ("speedup", 1.9, "met", 2.0),
        ("speedup", 2.1, "missed", 2.0),
        ("cost", 0.6, "met", 0.5),
        ("cost", 0.4, "missed", 0.5),
        ("cost per evaluation", 0.26, "met", 0.25),
        ("difference", -0.9, "met", -1.0),
        ("difference", -1.1, "missed", -1.0),
    ],
)
def test_goals(kind: str, bound: float, verdict: str, value: float) -> None:
    found = {"a": _measured(1.0, nfe=20), "slower a": _measured(1.5), "b": _measured(2.0)}
    goal = Goal("a goal", ("slower a", "a"), ("b",), kind, bound)  # type: ignore[arg-type]
    judged = goal.judge(found)
    assert judged["verdict"] == verdict
    assert judged["of"] == "a"  # the fastest
    assert judged["measured"] == pytest.approx([value] * 3)


def test_a_goal_without_its_contender_is_not_measured() -> None:
    judged = Goal("a goal", ("a",), ("b",), "speedup", 1.0).judge({"a": _measured(1.0)})
    assert judged["verdict"] == "not measured"
    assert judged["missing"] == "b"


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("import", "first-call")])
def test_contenders_agree(name: str) -> None:
    rows, goals = case_rows(name, threads=1, quick=True)
    by_name = {row["contender"]: row for row in rows}
    for row in rows:
        if "--quick" in row.get("skipped", ""):
            continue
        assert "skipped" not in row, row
        if "alone" not in row["contender"]:  # which has no result
            assert row["deviation"] <= CASES[name].agreement
        assert row["nfe"] > 0
    ours, theirs = by_name["neural_ode"], by_name["torchdiffeq"]
    # The same method takes as many evaluations, up to a last step that is stretched here over what little is left.
    fewest = 0 if name == "latent-ode-adjoint" else 0.85 * theirs["nfe"] - 6  # there their short solves cost more
    assert fewest <= ours["nfe"] <= 1.15 * theirs["nfe"] + 6
    assert len(goals) == len(CASES[name].goals)


def test_every_goal_names_contenders_of_its_case() -> None:
    for case in CASES.values():
        names = {contender.name for contender in case.contenders(True)}
        assert case.baseline in names
        for goal in case.goals:
            assert names >= {*goal.of, *goal.to}


def test_nothing_compiled_is_no_compiled_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_it_is(*args: Any, compile: bool, **how: Any) -> Solution:
        found = solve(*args, **how)
        found.stats.not_compiled = "a reason"
        return found

    monkeypatch.setattr(contenders, "solve", as_it_is)
    entry = contenders.ours(lotka_volterra(small=True), "dopri5", 1e-3, compile=True)
    _, skipped = measure([entry], 0.0, (1, 1))
    assert skipped == {"neural_ode": "compile=True runs it as it is: a reason"}


ALL_PROBLEMS = PROBLEMS | LARGER


@pytest.mark.parametrize("name", ALL_PROBLEMS)
def test_formula_and_module_are_the_same_function(name: str) -> None:
    jax = pytest.importorskip("jax")
    problem = ALL_PROBLEMS[name](True)
    with torch.no_grad():
        expected = arrays(problem.f(torch.tensor(0.3, dtype=problem.dtype), problem.y0))
    params = [jax.numpy.asarray(p.detach().numpy()) for p in problem.f.parameters()]
    state = jax.tree.map(lambda x: jax.numpy.asarray(x.numpy()), problem.y0)
    found = arrays(problem.formula(jax.numpy, 0.3, state, params))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [None, "direct", "backsolve"])
def test_diffrax_agrees(gradient: contenders.GradientName | None) -> None:
    pytest.importorskip("diffrax")
    problem = PROBLEMS["network"](True)
    values, nfe = contenders.diffrax(problem, "dopri5", gradient)(1e-6).prepare()()
    expected, _ = contenders.torchdiffeq(problem, "dopri5", 1e-6, gradient).prepare()()
    away = deviation(arrays(values), arrays(expected))
    assert away is not None
    assert away < 1e-3
    assert nfe is None or 10 < int(nfe) < 50


def test_the_pattern_of_the_brusselator_is_that_of_its_jacobian() -> None:
    pytest.importorskip("scipy")
    problem = brusselator(small=True)
    jacobian = torch.func.jacrev(lambda y: problem.f(problem.t[0], y))(problem.y0 + 0.1)
    size = problem.parts[0].numel()
    pattern = brusselator_pattern(problem.parts[0].shape[-1]).toarray() != 0
    assert ((jacobian.reshape(size, size) != 0).numpy() == pattern).all()


@pytest.mark.parametrize("gradient", [None, "direct"])
@pytest.mark.parametrize("ends_only", [False, True])
def test_torchode_agrees(ends_only: bool, gradient: Literal["direct"] | None) -> None:
    pytest.importorskip("torchode")
    problem = PROBLEMS["network"](True)
    problem = replace(problem, t=problem.t[[0, -1]]) if ends_only else problem
    values, _ = contenders.torchode(problem, "dopri5", 1e-6, "eager", gradient=gradient).prepare()()
    expected, _ = contenders.torchdiffeq(problem, "dopri5", 1e-6, gradient).prepare()()
    away = deviation(arrays(values), arrays(expected))
    assert away is not None
    assert away < 1e-3


def test_the_arenstorf_orbit_closes() -> None:
    pytest.importorskip("scipy")
    problem = arenstorf()
    y, _ = contenders.scipy(problem, "DOP853", 1e-13).prepare()()
    np.testing.assert_allclose(y[-1], y[0], atol=1e-5)


@pytest.fixture(scope="module")
def results() -> dict[str, object]:
    rows, goals = case_rows("per-sample", threads=1, quick=True)
    precision = precision_rows("lotka-volterra", threads=1, quick=True)
    found = {"machine": machine(), "quick": True, "rows": rows, "goals": goals, "work_precision": precision}
    return found | {"scaling": [row for axis in AXES for row in scaling_rows(axis, threads=1, quick=True)]}


def test_errors_fall_with_the_tolerance(results: dict[str, list[dict[str, object]]]) -> None:
    curves: dict[tuple[object, object], list[float]] = {}
    for row in results["work_precision"]:
        if "error" in row:
            curves.setdefault((row["library"], row["method"]), []).append(float(str(row["error"])))
    assert {library for library, _ in curves} >= {"neural_ode", "torchdiffeq", "SciPy"}
    for key, errors in curves.items():
        assert len(errors) == 2, key
        assert 2 * errors[1] < errors[0] < 0.1, (key, errors)


def test_file_and_tables(results: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    save(path, results)
    stored = load(path)
    assert stored.keys() == {"machine", "quick", "rows", "goals", "work_precision", "scaling"}
    assert stored["machine"]["cores"] >= 1
    assert stored["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    for row in stored["rows"]:
        assert row.keys() >= {"case", "contender", "threads"}
        assert "skipped" in row or row["q1"] <= row["median"] <= row["q3"]
    table = case_table(stored, "per-sample", 1)
    assert list(table.index) == [row["contender"] for row in stored["rows"]]
    assert table.loc["torchode, compiled", "remark"]
    assert list(goal_table(stored, 1)["verdict"]) == [goal["verdict"] for goal in stored["goals"]]
    assert len(draw_precision(stored, 1).axes) == 6
    assert len(draw_scaling(stored, 1).axes) == len(AXES)
    assert slopes_table(stored, 1).count("\n") == 2 + len(AXES)
    assert str(Path.home()) not in path.read_text()
    assert json.loads(path.read_text())["quick"] is True


def test_slopes_are_those_of_the_largest_sizes() -> None:
    rows = [
        {"axis": "batch", "library": "a", "size": size, "work": size**2, "seconds": size**2 if size > 60 else 1e6}
        for size in AXES["batch"]
    ]
    other = [{**row, "library": "b"} for row in rows[:-1]]  # the largest is missing
    assert slopes([*rows, *other]) == {("batch", "a"): pytest.approx(1.0)}


def test_the_longer_axis_takes_more_steps(results: dict[str, list[dict[str, object]]]) -> None:
    nfe = [row["nfe"] for row in results["scaling"] if (row["axis"], row["library"]) == ("length", "neural_ode")]
    assert len(nfe) == 2
    assert int(str(nfe[1])) > 1.3 * int(str(nfe[0]))


def test_merging_replaces_what_was_measured_again(results: dict[str, object]) -> None:
    row = {"case": "forward", "contender": "a", "threads": 1}
    empty = {"machine": machine(), "quick": True, "goals": [], "work_precision": [], "scaling": []}
    old = empty | {"rows": [row | {"median": 1.0}, row | {"case": "cnf"}, row | {"threads": 2}]}
    new = empty | {"rows": [row | {"median": 2.0}]}
    merged = merge(old, new)["rows"]
    assert [(r["case"], r["threads"], r.get("median")) for r in merged] == [
        ("forward", 1, 2.0),
        ("cnf", 1, None),
        ("forward", 2, None),
    ]
    assert merge(old | {"machine": {"cpu": "another"}}, new) == new
    assert merge(None, new) == new


def test_the_pages_show_the_stored_results(root: Path, tmp_path: Path) -> None:
    pages = [Path("README.md"), Path("benchmarks", "README.md")]
    (tmp_path / "benchmarks").mkdir()
    for page in pages:
        shutil.copy(root / page, tmp_path / page)
    stored = load(root / "benchmarks" / "results.json")
    update_readmes(tmp_path, stored)
    for page in pages:
        assert (tmp_path / page).read_text() == (root / page).read_text()
    missed = [goal for goal in stored["goals"] if goal["threads"] == 1 and goal["verdict"] != "met"]
    assert missed
    assert all(goal["goal"] in (root / pages[1]).read_text() for goal in missed)
