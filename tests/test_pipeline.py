"""The pipeline: parameters, source-only copies, the runner, and what makes DVC run a stage again."""

import ast
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import nbformat
import pytest
import yaml

from neural_ode.errors import FileError, InvalidArgumentError
from reproduction.files import publish_files
from reproduction.imports import LIBRARY, imported_modules
from reproduction.pipeline import refresh, sources
from reproduction.pipeline import run as runner
from reproduction.pipeline import sweep as sweeper
from reproduction.pipeline.alone import BusyError, locked
from reproduction.pipeline.clean import clean
from reproduction.pipeline.notebooks import read_notebook
from reproduction.pipeline.parameters import (
    Declared,
    ParameterError,
    check_parameters,
    declared_parameters,
    read_parameters,
)
from reproduction.pipeline.refresh import refreshed
from reproduction.pipeline.sources import source_only
from reproduction.workspace import OUTPUT_VARIABLE, Workspace

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def section(notebook: Path) -> str:
    return notebook.stem.split("_", 1)[1]


def notebook(*cells: str, parameters: str = "value: int = 1\nprofile: str = 'quick'") -> nbformat.NotebookNode:
    made = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    made.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    made.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    return made


# Parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_defaults_are_the_quick_profile(path: Path) -> None:
    declared = declared_parameters(path)
    quick = read_parameters(ROOT / "params" / "quick.yaml", section(path)) | {"profile": "quick"}
    assert {name: one.default for name, one in declared.items()} == quick


@pytest.mark.parametrize("profile", ["quick", "paper"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_profiles_name_every_parameter_with_the_right_type(profile: str, path: Path) -> None:
    declared = declared_parameters(path)
    given = read_parameters(ROOT / "params" / f"{profile}.yaml", section(path)) | {"profile": profile}
    check_parameters(given, declared, profile)
    assert set(given) == set(declared)


DECLARED = {
    "rate": Declared(float, 0.1),
    "epochs": Declared(int, 3),
    "seeds": Declared(list[int], [0]),
    "size": Declared(int | None, None),
    "method": Declared(str, "dopri5"),
    "options": Declared(dict[str, float], {}),
    "flag": Declared(bool, False),
}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epoch": 3}, r"unknown parameter 'epoch', did you mean 'epochs'\?.*known: rate, epochs"),
        ({"zzz": 3}, r"unknown parameter 'zzz'; known"),
        ({"epochs": 3.5}, r"'epochs' must be int, got 3.5 \(float\)"),
        ({"epochs": True}, r"must be int, got True \(bool\)"),
        ({"epochs": None}, r"must be int, got None"),
        (
            {"rate": "1e-3"},
            r"must be float, got '1e-3' \(str\); YAML reads numbers such as 1e-3 as text: write 1.0e-3",
        ),
        ({"seeds": 0}, r"must be list\[int\], got 0"),
        ({"seeds": [0, "1"]}, r"must be list\[int\]"),
        ({"size": "all"}, r"must be int \| None"),
        ({"options": {"a": "b"}}, r"must be dict\[str, float\]"),
        ({"flag": 1}, r"must be bool, got 1 \(int\)"),
    ],
)
def test_wrong_parameters_are_refused_by_name(given: dict, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        check_parameters(given, DECLARED, "params/quick.yaml")


def test_right_parameters_pass() -> None:
    given = {"rate": 1, "epochs": 2, "seeds": [], "size": 5, "method": "rk4", "options": {"a": 1}, "flag": True}
    check_parameters(given, DECLARED, "params/quick.yaml")
    check_parameters({"size": None}, DECLARED, "params/quick.yaml")


@pytest.mark.parametrize("cell", ["a = 1", "a: int", "a: int = b", "a: open = 1", "import os"])
def test_a_parameters_cell_holds_typed_literals_only(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook(parameters=cell), path)
    with pytest.raises(ParameterError, match="name: type = literal"):
        declared_parameters(path)


def test_missing_section(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text("memory: {}\n")
    with pytest.raises(ParameterError, match="no section 'memry', did you mean 'memory'"):
        read_parameters(tmp_path / "quick.yaml", "memry")
    with pytest.raises(ParameterError, match="no profile 'qick', did you mean 'quick'"):
        read_parameters(tmp_path / "qick.yaml", "memory")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("toy: {value: 1", r"quick\.yaml is not valid YAML \(while parsing .*\): it holds a section"),
        ("toy:\n\t- 1\n", r"quick\.yaml is not valid YAML"),
        ("- toy\n- 1\n", r"quick\.yaml must hold names with values, got list: it holds a section"),
        ("just words\n", r"quick\.yaml must hold names with values, got str"),
        ("1: {value: 2}\n", r"quick\.yaml: a name must be text, got 1"),
        ("when: 2026-13-45\n", r"quick\.yaml is not valid YAML"),
        (b"toy: \xff\xfe", r"quick\.yaml is damaged \(not text in UTF-8 at byte 5\)"),
        ("toy: [1, 2]\n", r"quick\.yaml: section 'toy' must hold lines `name: value`, got \[1, 2\]"),
        ("toy: three\n", r"section 'toy' must hold lines `name: value`, got 'three'"),
        ("toy: 0\n", r"section 'toy' must hold lines `name: value`, got 0"),
    ],
)
def test_a_damaged_file_of_parameters_is_named(text: str | bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "quick.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((FileError, ParameterError), match=words):
        read_parameters(file, "toy")


def test_an_empty_section_holds_no_parameters(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text("toy:\n")
    assert read_parameters(tmp_path / "quick.yaml", "toy") == {}


NO_NOTEBOOKS = [b"", b"plain text", b"[1, 2]", b"{}", b'{"cells": 3, "nbformat": 4}', b"\xff\xfe\x00"]


@pytest.mark.parametrize("content", NO_NOTEBOOKS)
def test_a_damaged_notebook_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "07_toy.ipynb"
    file.write_bytes(content)
    for read in (lambda: read_notebook(file, "way out"), lambda: imported_modules(file)):
        with pytest.raises(FileError, match=r"07_toy\.ipynb (is|must) .*: (way out|restore it)$"):
            read()
    with pytest.raises((FileError, ParameterError), match=r"07_toy\.ipynb "):
        declared_parameters(file)
    assert sources.main([str(tmp_path / "copies"), str(file)]) == 1
    assert "07_toy.ipynb is not a notebook" in capsys.readouterr().err


def test_a_missing_notebook_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileError, match=r"07_toy\.ipynb does not exist: copies in \.nbsrc are made by `dvc repro"):
        declared_parameters(tmp_path / "07_toy.ipynb")
    assert sources.main([str(tmp_path / "copies"), str(tmp_path / "07_toy.ipynb")]) == 1
    assert "07_toy.ipynb cannot be read" in capsys.readouterr().err


PATHS = ["", ".", "..", "../quick", "a/b", "/quick", "a\\b", "-quick"]


@pytest.mark.parametrize("profile", PATHS)
def test_a_profile_is_a_name_and_no_path(
    profile: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "quick.yaml").write_text("toy: {value: 2}\n")  # what ../quick would find
    before = sorted(project.rglob("*"))
    for command in (lambda: runner.main(["07_toy.ipynb", f"--profile={profile}"]), lambda: swept(profile)):
        assert command() == 1
        assert f"profile must be a name of letters, digits, '_', '-' and '.', such as 'quick', got {profile!r}" in (
            capsys.readouterr().err
        )
    assert sorted(project.rglob("*")) == before
    with pytest.raises(InvalidArgumentError, match="profile must be a name"):
        Workspace.open("07_toy", profile)


def swept(profile: str) -> int:
    return sweeper.main(["mnist", f"--profile={profile}"])


# Copies and stored outputs ---------------------------------------------------------------------------------------


def test_running_a_notebook_does_not_change_its_source() -> None:
    before = notebook("1 + 1")
    after = nbformat.reads(nbformat.writes(before), as_version=4)
    after.cells[1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=7)]
    after.cells[1].execution_count = 7
    after.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-01-01"}
    after.metadata["language_info"] = {"name": "python", "version": "3.11.9"}
    assert source_only(after) == source_only(before)
    after.cells[1].source += " "
    assert source_only(after) != source_only(before)


def test_what_varies_is_taken_out() -> None:
    made = notebook("1")
    pieces = [("stdout", "a"), ("stderr", "\rnet:  10%|█   | 1/10 [00:01<00:09"), ("stdout", "b")]
    pieces += [("stderr", ", 1.0s/it, loss=2]"), ("stderr", "\rnet: 100%|████| 10/10 [00:10<00:00, 1.0s/it]\n\n")]
    made.cells[1].outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
    made.metadata["papermill"] = {"duration": 3.2}
    made.cells[1].metadata = nbformat.from_dict({"papermill": {"duration": 1.0}, "execution": {}})
    cleaned = clean(made)
    assert "papermill" not in json.dumps(cleaned)
    assert [output.text for output in cleaned.cells[1].outputs] == ["ab"]


def test_a_widget_leaves_the_words_beside_it() -> None:
    shown = {"text/plain": "a slider", "application/vnd.jupyter.widget-view+json": {"model_id": "gone"}}
    made = notebook("slider")
    made.cells[1].outputs = [nbformat.v4.new_output("display_data", shown)]
    assert clean(made).cells[1].outputs[0].data == {"text/plain": "a slider"}


def test_a_warning_beside_a_progress_bar_stays() -> None:
    made = notebook("1")
    bars = ["\rx:   0%|    | 0/3 [00:00<?, ?it/s]", "\rx:  33%|█   | 1/3 [00:01<00:02, 1s/it]"]
    text = f"{bars[0]}a.py:3: UserWarning: careful\n  warn()\n{bars[1]}"
    made.cells[1].outputs = [nbformat.v4.new_output("stream", name="stderr", text=text)]
    assert [output.text for output in clean(made).cells[1].outputs] == ["a.py:3: UserWarning: careful\n  warn()\n"]


def test_outputs_are_stored_only_where_the_source_is_the_same() -> None:
    source = notebook("1")
    executed = nbformat.reads(nbformat.writes(source), as_version=4)
    executed.cells[1].execution_count = 2
    assert refreshed(source, executed).cells[1].execution_count == 2
    executed.cells[1].source = "2"
    with pytest.raises(ValueError, match=r"run `dvc repro` first"):
        refreshed(source, executed)


def test_outputs_that_are_not_there_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "notebooks").mkdir()
    stored = project / "notebooks" / "07_toy.ipynb"
    shutil.copy("07_toy.ipynb", stored)
    before = stored.read_bytes()
    assert refresh.main() == 1
    assert "figures/quick/07_toy.ipynb does not exist: make it with `make figures`" in capsys.readouterr().err
    assert stored.read_bytes() == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebooks_are_worth_checking(path: Path) -> None:
    """A notebook without outputs passes nbval without being compared with anything."""
    stored = nbformat.read(path, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    checked = [cell for cell in code if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert checked
    assert all(cell.outputs for cell in checked)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert path.stat().st_size < 2**20
    assert max(cell.source.count("\n") + 1 for cell in code) <= 20


LEARNED = {
    "01_depth": [
        "ResNet fits the staircase to 0.2",
        "ODE network fits the staircase to 0.2",
        "distance falls with",
    ],
    "04_mnist": ["6 of 6 networks have learned something"],
    "06_density_matching": ["18 of 18 flows are nearer to their target than the base distribution is"],
    "07_maximum_likelihood": ["4 of 4 flows have learned something"],
    "08_spirals": ["9 of 9 models have learned something", "9 of 9 models give finite predictions"],
    "10_poisson": ["4 of 4 rates are learned better than by a constant"],
}
BAD_SIGNS = [
    "is estimated below zero",
    "no more evaluations",
    "hardly tell",
    "better than the true one",
    "does not fit",
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_quick_profile_learns(path: Path) -> None:
    """What notebooks say in words, since other parameters may lead elsewhere."""
    outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", [])]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    for sentence in LEARNED.get(path.stem, []):
        assert sentence in said
    for sentence in BAD_SIGNS:
        assert sentence not in said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_stops_a_notebook_says_why(path: Path) -> None:
    """A reader who changes a parameter and hits an assertion learns more than that it failed."""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                assert not isinstance(node, ast.Assert) or isinstance(node.msg, ast.Constant), cell.source


COMMITTED = [
    path
    for folder in ("notebooks", "figures/paper", "runs/paper", "benchmarks")
    for suffix in ("ipynb", "json", "csv")
    for path in sorted((ROOT / folder).rglob(f"*.{suffix}"))
    if not path.name.endswith(".failed.ipynb")
]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(ROOT)))
def test_results_name_no_path_of_the_machine_that_made_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", text)
    assert str(ROOT) not in text
    assert "site-packages" not in text


# dvc.yaml --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stages_depend_on_what_their_notebooks_import(path: Path) -> None:
    """No module too few, or a change would go unnoticed; none too many, or it would run for nothing."""
    listed = {dep for dep in STAGES[section(path)]["deps"] if dep.startswith("lib/") and not dep.endswith(".yaml")}
    needed = {str(module.relative_to(ROOT)) for module in imported_modules(path)}
    covered = {
        module: {dep for dep in listed if module == dep or module.startswith(f"{dep}/")} for module in needed
    }
    assert [module for module, deps in covered.items() if not deps] == []
    assert listed - set().union(*covered.values()) == set()


def test_an_experiment_does_not_depend_on_another() -> None:
    """What all trainings share knows no model and no data: a change of the classifiers trains no spirals."""
    training = LIBRARY / "reproduction" / "training"
    shared = {file for name in ("adam", "weights") for file in imported_modules(training / f"{name}.py")}
    assert not [file for file in shared if file.parts[-2] in ("models", "data", "experiments")]
    assert not [file for file in imported_modules(ROOT / "notebooks" / "08_spirals.ipynb") if file.stem == "mnist"]


def test_every_notebook_has_a_stage_and_a_copy() -> None:
    copies = {next(iter(out)) for out in STAGES["sources"]["outs"]}
    assert copies == {f".nbsrc/{path.name}" for path in NOTEBOOKS}
    assert set(STAGES) == {"sources", *(section(path) for path in NOTEBOOKS)}
    # The results of a notebook begin with its name: no name may begin with another and an underscore.
    assert not [a.stem for a in NOTEBOOKS for b in NOTEBOOKS if b.stem.startswith(f"{a.stem}_")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stage_runs_its_notebook_in_its_profile(path: Path) -> None:
    """Not the quick profile whatever the stage is called, and with the parameters of that profile."""
    stage = STAGES[section(path)]
    assert stage["matrix"] == {"profile": "${profiles}"}
    command = f"python -m reproduction.pipeline.run .nbsrc/{path.name} --profile ${{item.profile}}"
    assert stage["cmd"] == command
    assert {"params/${item.profile}.yaml": [section(path)]} in stage["params"]
    read = {name for entry in stage["params"] for name in entry}
    assert read <= {"params/${item.profile}.yaml", "lib/reproduction/claims.yaml"}
    made = [name for kind in ("outs", "metrics", "plots") for out in stage.get(kind, []) for name in out]
    of_others = [dep for dep in stage["deps"] if dep.startswith(("figures/", "runs/"))]
    for name in made + of_others:
        assert name.split("/")[:2] in (["figures", "${item.profile}"], ["runs", "${item.profile}"]), name


def test_previous_results_survive_a_failed_run() -> None:
    """DVC deletes what is not persistent before a stage runs."""
    for name, stage in STAGES.items():
        for kind in ("outs", "metrics", "plots"):
            for out in stage.get(kind, []):
                ((path, settings),) = out.items()
                assert settings["cache"] is False, path
                assert name == "sources" or settings["persist"] is True, path


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with made-up results that DVC takes for those of its stages."""
    folder = tmp_path_factory.mktemp("clone")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    listed = files.stdout.splitlines() if files.returncode == 0 else []
    for name in listed or [
        str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts
    ]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)  # whatever was run here
    dvc(folder, "config", "--local", "core.no_scm", "true")
    dvc(folder, "repro", "sources")
    for name, stage in STAGES.items():
        for out in (next(iter(o)) for kind in ("outs", "metrics", "plots") for o in stage.get(kind, [])):
            path = folder / out.replace("${item.profile}", "quick")
            if name != "sources":
                (path if not path.suffix else path.parent).mkdir(parents=True, exist_ok=True)
                (path / "weights" if not path.suffix else path).write_text("{}")
    dvc(folder, "commit", "--force")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def changed(folder: Path) -> set[str]:
    """The stages that `dvc repro` would run, apart from the copying of the notebooks."""
    dvc(folder, "repro", "sources")
    return set(json.loads(dvc(folder, "status", "--json"))) - {"sources"}


@pytest.fixture
def touched(clone: Path) -> Iterator:
    """Edit a file of the clone for the time of a test."""
    kept: dict[Path, str] = {}

    def edit(name: str, change) -> None:
        path = clone / name
        kept.setdefault(path, path.read_text(encoding="utf-8"))
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    yield edit
    for path, text in kept.items():
        path.write_text(text, encoding="utf-8")


@pytest.mark.slow
class TestWhatRunsAgain:
    def test_nothing_without_a_change(self, clone: Path) -> None:
        assert changed(clone) == set()

    def test_nothing_after_running_and_saving_a_notebook(self, clone: Path, touched) -> None:
        def run(text: str) -> str:
            ran = nbformat.reads(text, as_version=4)
            for cell in ran.cells:
                cell.metadata["collapsed"] = False
                if cell.cell_type == "code":
                    cell.execution_count = 99
                    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="new")]
            ran.metadata["language_info"]["version"] = "3.11.99"
            return nbformat.writes(ran, indent=2)

        touched("notebooks/04_mnist.ipynb", run)
        assert changed(clone) == set()

    def test_one_parameter_touches_one_stage(self, clone: Path, touched) -> None:
        touched("params/quick.yaml", lambda text: text.replace("epochs: 4", "epochs: 5"))
        assert changed(clone) == {"mnist@quick"}

    def test_another_profile_touches_nothing(self, clone: Path, touched) -> None:
        touched("params/paper.yaml", lambda text: text.replace("epochs: 10", "epochs: 11"))
        assert changed(clone) == set()

    def test_a_changed_cell_touches_its_stage(self, clone: Path, touched) -> None:
        touched("notebooks/03_memory.ipynb", lambda text: text.replace("use_theme()", "use_theme()  # now"))
        assert changed(clone) == {"memory@quick"}

    def test_a_module_touches_the_stages_that_use_it(self, clone: Path, touched) -> None:
        touched("lib/reproduction/training/mnist.py", lambda text: text + "\n")
        assert changed(clone) == {"mnist@quick", "tolerance@quick"}
        touched("lib/reproduction/measure/memory.py", lambda text: text + "\n")
        assert changed(clone) == {"mnist@quick", "tolerance@quick", "memory@quick"}
        touched("lib/reproduction/training/planar.py", lambda text: text + "\n")
        flows = {"density_matching@quick", "maximum_likelihood@quick"}
        assert changed(clone) == {"mnist@quick", "tolerance@quick", "memory@quick", *flows}

    def test_a_claim_touches_the_stages_that_decide_it(self, clone: Path, touched) -> None:
        touched("lib/reproduction/claims.yaml", lambda text: text.replace("R² > 0.99", "R² over 0.99"))
        assert changed(clone) == {"memory@quick", "scoreboard@quick"}

    def test_a_second_profile_leaves_the_first_alone(self, clone: Path, touched) -> None:
        touched("params.yaml", lambda text: text.replace("[quick]", "[quick, paper]"))
        assert changed(clone) == {f"{name}@paper" for name in STAGES if name != "sources"}


# The runner ------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one notebook, 07_toy, which writes a figure and fails if its value is 0."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "quick.yaml").write_text("toy: {value: 2}\n")
    made = notebook(
        "from reproduction.workspace import Workspace\n"
        "work = Workspace.open('07_toy', profile)\n"
        "work.checkpoints.mkdir(parents=True, exist_ok=True)\n"
        "resumed = (work.checkpoints / 'half').exists()\n"
        "(work.checkpoints / 'half').touch()\n"
        "print('value', value, 'resumed', resumed)",
        "work.write_metrics({'value': value, 'resumed': resumed})",
        "work.write_claims({'inverse': 1 / value})",
    )
    nbformat.write(made, tmp_path / "07_toy.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OUTPUT_VARIABLE, "")  # the runner sets it; pytest takes it back
    return tmp_path


def metrics(project: Path) -> dict:
    return json.loads((project / "figures" / "quick" / "07_toy.json").read_text())


def test_the_runner_publishes_results(project: Path) -> None:
    assert runner.main(["07_toy.ipynb"]) == 0
    assert metrics(project) == {"value": 2, "resumed": False}
    executed = (project / "figures" / "quick" / "07_toy.ipynb").read_text()
    assert "value 2 resumed False" in executed
    assert "injected-parameters" in executed
    assert not (project / ".staging" / "quick" / "07_toy").exists()
    assert runner.main(["07_toy.ipynb"]) == 0
    assert (project / "figures" / "quick" / "07_toy.ipynb").read_text() == executed  # byte for byte


def test_a_notebook_that_runs_with_its_defaults_runs_as_it_stands(project: Path) -> None:
    (project / "params" / "quick.yaml").write_text("toy: {value: 1}\n")
    assert runner.main(["07_toy.ipynb"]) == 0
    executed = (project / "figures" / "quick" / "07_toy.ipynb").read_text()
    assert "value 1 resumed False" in executed
    assert "injected-parameters" not in executed


def test_a_failing_cell_loses_nothing(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["07_toy.ipynb"]) == 0
    before = {p: p.read_bytes() for p in (project / "figures" / "quick").iterdir()}
    (project / "params" / "quick.yaml").write_text("toy: {value: 0}\n")
    assert runner.main(["07_toy.ipynb"]) == 1
    printed = capfd.readouterr().err
    assert "ZeroDivisionError" in printed
    assert "figures/quick/07_toy.failed.ipynb" in printed
    assert {path: path.read_bytes() for path in before} == before
    failed = project / "figures" / "quick" / "07_toy.failed.ipynb"
    assert "ZeroDivisionError" in failed.read_text()
    # The next run resumes from the checkpoints of the failed one, and takes its notebook away.
    (project / "params" / "quick.yaml").write_text("toy: {value: 4}\n")
    assert runner.main(["07_toy.ipynb"]) == 0
    assert metrics(project) == {"value": 4, "resumed": True}
    assert not failed.exists()


@pytest.mark.parametrize("params", ["{vlaue: 3}", "{value: three}", "{value: 1.5}"])
def test_wrong_parameters_stop_the_runner_before_anything_runs(
    project: Path, params: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "params" / "quick.yaml").write_text(f"toy: {params}\n")
    assert runner.main(["07_toy.ipynb"]) == 1
    assert "params/quick.yaml, section toy: " in capfd.readouterr().err
    assert not (project / "figures").exists()


def test_a_dead_kernel_is_reported(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = notebook("import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    nbformat.write(made, project / "07_toy.ipynb")
    assert runner.main(["07_toy.ipynb"]) == 1
    assert "its kernel died" in capfd.readouterr().err
    assert (project / "figures" / "quick" / "07_toy.failed.ipynb").exists()


def test_results_that_are_no_longer_made_go_away(project: Path) -> None:
    assert runner.main(["07_toy.ipynb"]) == 0
    figures, runs = (project / part / "quick" for part in ("figures", "runs"))
    stale = [figures / "07_toy_old.svg", runs / "07_toy" / "old" / "a.csv"]
    others = [figures / "08_other.svg", runs / "08_other" / "a.csv"]
    for path in (*stale, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made before")
    assert runner.main(["07_toy.ipynb"]) == 0
    assert not any(path.exists() for path in stale)
    assert all(path.exists() for path in others)
    assert list((project / ".staging" / "quick").iterdir()) == []


# Publishing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(project: Path) -> Path:
    """The project with results of a first run, weights among them; a second run would change all of them."""
    made = nbformat.read(project / "07_toy.ipynb", as_version=4)
    made.cells.append(
        nbformat.v4.new_code_cell(
            "from reproduction.files import write_atomically\n"
            "for name in ('a', 'b'):\n"
            "    write_atomically(work.runs / name, f'weights {value}')\n"
            "write_atomically(work.figure(f'only_{value}').with_suffix('.svg'), '<svg/>')"
        )
    )
    nbformat.write(made, project / "07_toy.ipynb")
    assert runner.main(["07_toy.ipynb"]) == 0
    (project / "params" / "quick.yaml").write_text("toy: {value: 3}\n")
    return project


def results(project: Path) -> dict[str, bytes]:
    """What is published, and what else lies there."""
    return {
        str(path.relative_to(project)): path.read_bytes()
        for folder in ("figures", "runs")
        for path in sorted((project / folder).rglob("*"))
        if path.is_file()
    }


def test_the_second_run_replaces_everything(trained: Path) -> None:
    before = results(trained)
    assert runner.main(["07_toy.ipynb"]) == 0
    after = results(trained)
    assert after["runs/quick/07_toy/a"] == b"weights 3"
    assert set(before) ^ set(after) == {"figures/quick/07_toy_only_2.svg", "figures/quick/07_toy_only_3.svg"}
    assert not any(after[name] == before[name] for name in set(before) & set(after))


def test_a_file_that_cannot_be_replaced_leaves_all_as_it_was(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    last = trained / "runs" / "quick" / "07_toy" / "b"
    last.unlink()
    last.mkdir()
    before = results(trained)
    assert runner.main(["07_toy.ipynb"]) == 1
    assert "nothing was published" in capfd.readouterr().err
    assert results(trained) == before
    last.rmdir()
    assert runner.main(["07_toy.ipynb"]) == 0
    assert last.read_bytes() == b"weights 3"


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, method: str, number: int, code: int) -> Iterator[list[Path]]:
    """A call of a method of `Path` on a published file fails, as on a full disk; the calls."""
    real, calls = getattr(Path, method), []

    def counted(self: Path, *arguments: object, **options: object) -> object:
        if {"figures", "runs"} & {*self.parts} and ".staging" not in self.parts and not options:
            calls.append(self)
            if len(calls) == number:
                raise OSError(code, os.strerror(code), str(self))
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, counted)
        yield calls


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize(("method", "code"), [("replace", errno.EROFS), ("unlink", errno.EACCES)])
def test_whatever_step_fails_all_is_as_it_was(
    method: str, code: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, root = tmp_path / ".staging", tmp_path / "root"
    for folder, text in ((stage, "new"), (root, "old")):
        for name in ("figures/quick/07_toy.svg", "runs/quick/07_toy/a", "runs/quick/07_toy/b"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    (root / "figures/quick/07_toy_outdated.svg").write_text("old")
    (stage / "figures/quick/07_toy_added.svg").write_text("new")
    before = results(root)
    fails = number <= {"replace": 4, "unlink": 1}[method]
    expected = pytest.raises(FileError, match=os.strerror(code)) if fails else nullcontext()
    with failing(monkeypatch, method, number, code), expected:
        runner.publish(stage, root, "07_toy", "quick")
    assert results(root) == before if fails else set(results(root).values()) == {b"new"}


def test_what_cannot_be_put_back_is_not_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("source", "target"):
        for name in ("a", "b"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text(folder)
    targets = {tmp_path / "target" / name: tmp_path / "source" / name for name in ("a", "b")}
    real, calls = Path.replace, []

    def broken(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) > 1:  # nothing can be renamed any more
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self), None, str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(FileError, match=r"not put back, but still there: .*\.a\.old"):
        publish_files(targets, [])
    assert (tmp_path / "target" / ".a.old").read_text() == "target"
    assert (tmp_path / "target" / "b").read_text() == "target"


def test_an_interrupted_publication_is_taken_back(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = results(trained), Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == ".b.new":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.main(["07_toy.ipynb"])
    assert results(trained) == before


def test_results_may_lie_on_another_file_system(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rename = Path.replace

    def between(self: Path, target: Path) -> Path:
        if (".staging" in self.parts) != (".staging" in Path(target).parts):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(self), None, str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", between)
    assert runner.main(["07_toy.ipynb"]) == 0
    assert results(trained)["runs/quick/07_toy/b"] == b"weights 3"


def test_a_failing_cell_is_named_even_if_nothing_can_be_kept(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "params" / "quick.yaml").write_text("toy: {value: 0}\n")
    (project / "figures" / "quick" / "07_toy.failed.ipynb").mkdir(parents=True)
    assert runner.main(["07_toy.ipynb"]) == 1
    printed = capfd.readouterr().err
    assert "07_toy, cell 5: ZeroDivisionError: division by zero" in printed
    assert "could not be kept" in printed


# One run at a time -----------------------------------------------------------------------------------------------


HOLDER = """
    import sys, time
    from pathlib import Path
    from reproduction.pipeline.alone import locked

    with locked(Path(sys.argv[1]), "work"):
        print("locked", flush=True)
        time.sleep(120)
"""


@contextmanager
def another_process(file: Path) -> Iterator[subprocess.Popen]:
    """That holds a lock."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def test_a_notebook_runs_once_at_a_time(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    half = project / ".staging" / "quick" / "07_toy" / "figures" / "half"
    half.parent.mkdir(parents=True)
    half.write_text("of the other run")
    with another_process(project / ".staging" / "quick" / "07_toy.lock") as other:
        assert runner.main(["07_toy.ipynb"]) == 1
        assert f"07_toy in profile 'quick' is under way already: wait until process {other.pid} ends" in (
            capfd.readouterr().err
        )
        assert half.read_text() == "of the other run"
        os.kill(other.pid, signal.SIGKILL)
    assert runner.main(["07_toy.ipynb"]) == 0, "the lock died with its process"
    assert list((project / ".staging" / "quick").iterdir()) == []


def test_a_sweep_and_its_notebook_do_not_run_at_the_same_time(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "params" / "quick.yaml").write_text("mnist: {}\n")
    (project / "notebooks").symlink_to(ROOT / "notebooks")
    with locked(project / ".staging" / "quick" / "04_mnist.lock", "the notebook"):
        assert swept("quick") == 1
    assert f"04_mnist in profile 'quick' is under way already: wait until process {os.getpid()}" in (
        capsys.readouterr().err
    )


def test_a_lock_is_free_when_its_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lock"
    for _ in range(2):
        with locked(file, "work"):
            assert file.read_text() == str(os.getpid())
            with pytest.raises(
                BusyError, match=rf"work is under way already: wait until process {os.getpid()} ends"
            ):
                locked(file, "work").__enter__()
        assert not file.exists()


def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder removes the file, between the opening of it here and the locking."""
    file, calls, flock = tmp_path / "lock", [], fcntl.flock

    def late(held: int, how: int) -> None:
        flock(held, how)
        calls.append(how)
        if len(calls) == 1:
            file.unlink()

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(file, "work"):
        assert file.read_text() == str(os.getpid())
    assert len(calls) == 2


def test_where_nothing_can_be_written_the_place_is_named(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / ".staging").write_text("in the way")
    assert runner.main(["07_toy.ipynb"]) == 1
    assert ".staging/quick/07_toy.lock cannot be made" in capfd.readouterr().err
    (project / ".staging").unlink()
    (project / ".staging" / "quick" / "07_toy").mkdir(parents=True)
    (project / ".staging" / "quick" / "07_toy" / "figures").write_text("in the way")
    assert runner.main(["07_toy.ipynb"]) == 1
    assert ".staging/quick/07_toy cannot be emptied" in capfd.readouterr().err


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc").exists() else True
    return False


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


ELSEWHERE = """
    from reproduction.pipeline import alone, run

    run.HEADLESS = run.HEADLESS[:1]
    alone.stop_with_parent()
    run.main(["07_toy.ipynb"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("platform", [sys.platform, "elsewhere"])
def test_a_run_ends_with_the_process_that_started_it(platform: str, project: Path) -> None:
    """As with `dvc repro`, of which a user kills the one process that he sees."""
    made = notebook(
        "import os, time",
        "open('pids.new', 'w').write(f'{os.getppid()} {os.getpid()}')\nos.replace('pids.new', 'pids')",
        "time.sleep(300)",
    )
    nbformat.write(made, project / "07_toy.ipynb")
    run = [sys.executable, "-m", "reproduction.pipeline.run", "07_toy.ipynb"]
    if platform == "elsewhere":
        run = [sys.executable, "-c", textwrap.dedent(ELSEWHERE)]
    starter = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({run!r})"])
    try:
        until((project / "pids").exists)
    finally:
        starter.kill()
        starter.wait()
    run_pid, kernel_pid = map(int, (project / "pids").read_text().split())
    until(lambda: not alive(run_pid) and not alive(kernel_pid), 20)
    nbformat.write(notebook("1"), project / "07_toy.ipynb")
    until(lambda: runner.main(["07_toy.ipynb"]) == 0, 20)  # a process keeps its files until its last thread ends


@pytest.mark.parametrize(
    ("before", "watched"), [("0", True), ("ignore()", False), ("ignore(); os.environ['DVC_STAGE'] = 'toy'", True)]
)
def test_nohup_lets_a_run_outlive_the_shell_but_not_dvc(before: str, watched: bool) -> None:
    script = f"""
        import os, signal, threading
        from reproduction.pipeline.alone import stop_with_parent
        ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
        {before}
        stop_with_parent()
        print(threading.active_count())
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(found.stdout) == 1 + watched
