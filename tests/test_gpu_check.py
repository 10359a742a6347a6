"""`make gpu-check`, as far as a machine without a GPU can tell."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from neural_ode import solve
from reproduction.workspace import project_root

sys.path.insert(0, str(project_root(Path(__file__))))

pytest.importorskip("torchdiffeq")

from benchmarks import contenders, gpu_check
from benchmarks.gpu_check import CASES, Outcome, case_rows, check_case, check_notebooks, limited, main, tables

ROOT = project_root(Path(__file__))
PYTHON = [sys.executable, "-c"]


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no CUDA device" in capsys.readouterr().out


def test_commands_have_until_a_time() -> None:
    soon = time.monotonic() + 60
    assert limited("a", [[*PYTHON, "print('first')"], [*PYTHON, "print('last')"]], soon)[::3] == ("a", "last")
    failed = limited("b", [[*PYTHON, "print('why'); raise SystemExit(3)"], [*PYTHON, "print('no')"]], soon)
    assert (failed.verdict, failed.said) == ("failed", "why")
    slow = limited("c", [[*PYTHON, "import time; time.sleep(60)"]], time.monotonic() + 1)
    assert slow.verdict == "not finished"
    assert slow.seconds < 30
    assert limited("d", [[*PYTHON, ""]], time.monotonic() - 1).verdict == "not finished"


def test_notebooks_get_the_device_and_leave_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    shutil.copy(ROOT / "params" / "quick.yaml", tmp_path / "params" / "quick.yaml")
    monkeypatch.setattr(gpu_check, "project_root", lambda: tmp_path)
    left = tmp_path / "results" / "cuda" / "04_mnist" / "left.csv"  # by a run that was killed
    left.parent.mkdir(parents=True)
    left.write_text("")
    parameters = tmp_path / "params" / "cuda.yaml"
    seen: list[tuple[str, str]] = []

    def look(name: str, commands: list[list[str]], until: float) -> Outcome:
        seen.append((name, parameters.read_text()))
        assert all("cuda" in command for command in commands)
        assert not left.exists()
        folder = tmp_path / "results" / "cuda" / name
        folder.mkdir(parents=True)
        (folder / "a.csv").write_text("")
        return Outcome(name, "passed", 1.0, "wrote a file")

    monkeypatch.setattr(gpu_check, "limited", look)
    found = check_notebooks("cuda:1", 0.0, 2, only=("04_mnist", "10_poisson"))
    assert [one.name for one in found] == ["04_mnist", "10_poisson"]
    assert {one.said for one in found} == {""}
    for _, text in seen:
        assert text.count("device: cuda:1") == 2
    assert not parameters.exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["quick.yaml"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_contenders_agree(case: gpu_check.Case) -> None:
    rows = case_rows(case, torch.device("cpu"), small=True)
    assert [row["contender"] for row in rows][:2] == ["torchdiffeq", "neural_ode"]
    for row in rows:
        assert row["median"] > 0
        assert row["nfe"] > 0
        assert row["deviation"] < 0.2


def test_a_wrong_result_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(f: Any, y0: Any, *rest: Any, **how: Any) -> Any:
        return solve(lambda t, y: 2 * f(t, y), y0, *rest, **how)

    monkeypatch.setattr(contenders, "solve", wrong)
    rows = case_rows(CASES[0], torch.device("cpu"), small=True)
    assert "away from that of torchdiffeq" in rows[1]["skipped"]
    assert gpu_check._judged("a case", rows, 1.0).verdict == "failed"
    aside = {"contender": "neural_ode, compiled", "skipped": "compile=True runs it as it is: a reason"}
    assert gpu_check._judged("a case", [rows[0], aside], 1.0).verdict == "passed"
    warned = aside | {"skipped": "compile=True: f cannot be compiled and runs as it is (a reason)"}
    assert gpu_check._judged("a case", [rows[0], warned], 1.0).verdict == "failed"


def test_a_case_has_a_process_of_its_own() -> None:
    outcome, rows = check_case(0, "cpu", time.monotonic() + 120, small=True)
    assert outcome.verdict == "passed"
    assert {row["case"] for row in rows} == {CASES[0].title}
    assert check_case(0, "cpu", time.monotonic() + 0.5, small=True)[0].verdict == "not finished"


def test_tables_show_what_failed() -> None:
    machine = {"device": "a device", "versions": {"torch": "2"}}
    row = {"case": "work", "contender": "torchdiffeq"}
    rows = [
        row | {"median": 0.5, "ratio": [1.0, 1.0, 1.0]},
        row | {"contender": "neural_ode", "median": 0.25, "ratio": [2.0, 1.9, 2.1]},
        row | {"case": "other", "skipped": "no time was left"},
    ]
    found = {"machine": machine, "checks": [Outcome("a test", "failed", 3.0, "why")._asdict()], "rows": rows}
    text = tables(json.loads(json.dumps(found)))
    assert "| a test | failed | 3 | why |" in text
    assert "| work | 500 ms | 2× |" in text
    assert "| other | – | – |" in text
    assert "* other, torchdiffeq: no time was left" in text
