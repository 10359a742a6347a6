"""The pipeline: parameters, source-only copies, the runner, and what makes DVC run a stage again."""

import ast
import base64
import errno
import fcntl
import io
import itertools
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
import numpy as np
import pytest
import yaml
from PIL import Image

from neural_ode.errors import FileError, InvalidArgumentError
from reproduction.files import publish_files
from reproduction.meaning import SourceError, imported_modules
from reproduction.pipeline import compute as computer
from reproduction.pipeline import identity, refresh
from reproduction.pipeline import run as runner
from reproduction.pipeline.alone import BusyError, locked
from reproduction.pipeline.clean import clean
from reproduction.pipeline.identity import source_only
from reproduction.pipeline.notebooks import read_notebook
from reproduction.pipeline.parameters import (
    Declared,
    ParameterError,
    check_parameters,
    declared_parameters,
    read_parameters,
)
from reproduction.pipeline.refresh import refreshed
from reproduction.workspace import DRAW_VARIABLE, OUTPUT_VARIABLE, Workspace

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
LISTS = {name: names for one in PIPELINE["vars"] for name, names in one.items()}


def notebook(*cells: str, parameters: str = "value: int = 1\nprofile: str = 'quick'") -> nbformat.NotebookNode:
    made = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    made.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    made.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    return made


# Parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_defaults_are_the_quick_profile(path: Path) -> None:
    declared = declared_parameters(path)
    quick = read_parameters(ROOT / "params" / "quick.yaml", path.stem) | {"profile": "quick"}
    assert {name: one.default for name, one in declared.items()} == quick


@pytest.mark.parametrize("profile", ["quick", "paper"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_profiles_name_every_parameter_with_the_right_type(profile: str, path: Path) -> None:
    declared = declared_parameters(path)
    given = read_parameters(ROOT / "params" / f"{profile}.yaml", path.stem) | {"profile": profile}
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
        with pytest.raises((FileError, SourceError), match=r"07_toy\.ipynb (is|must) .*: (way out|restore it)$"):
            read()
    with pytest.raises((FileError, ParameterError), match=r"07_toy\.ipynb "):
        declared_parameters(file)
    assert identity.main([str(tmp_path / "copies"), str(file)]) == 1
    assert "07_toy.ipynb is not a notebook" in capsys.readouterr().err


def test_a_missing_notebook_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileError, match=r"07_toy\.ipynb does not exist: copies in \.identity are made by `dvc"):
        declared_parameters(tmp_path / "07_toy.ipynb")
    assert identity.main([str(tmp_path / "copies"), str(tmp_path / "07_toy.ipynb")]) == 1
    assert "07_toy.ipynb cannot be read" in capsys.readouterr().err


PATHS = ["", ".", "..", "../quick", "a/b", "/quick", "a\\b", "-quick"]


@pytest.mark.parametrize("profile", PATHS)
def test_a_profile_is_a_name_and_no_path(
    profile: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "quick.yaml").write_text("07_toy: {value: 2}\n")  # what ../quick would find
    before = sorted(project.rglob("*"))
    for command in (runner, computer):
        assert command.main(["07_toy.ipynb", f"--profile={profile}"]) == 1
        assert f"profile must be a name of letters, digits, '_', '-' and '.', such as 'quick', got {profile!r}" in (
            capsys.readouterr().err
        )
    assert sorted(project.rglob("*")) == before
    with pytest.raises(InvalidArgumentError, match="profile must be a name"):
        Workspace.open("07_toy", profile)


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


def test_large_pictures_of_notebooks_are_made_smaller() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="png")
    cell = nbformat.v4.new_code_cell("plot")
    picture = {"image/png": base64.b64encode(content.getvalue()).decode(), "text/plain": "a figure"}
    cell.outputs = [nbformat.v4.new_output("display_data", picture)]
    data = clean(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs[0].data
    found = base64.b64decode(data["image/png"])
    assert data["text/plain"] == "a figure"
    assert len(found) < 0.5 * len(content.getvalue())
    with Image.open(io.BytesIO(found)) as image:
        assert image.size == (200, 200)
        assert np.abs(np.asarray(image.convert("RGB"), dtype=int) - pixels).mean() < 32


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
    assert (
        "figures/quick/07_toy/07_toy.ipynb does not exist: make it with `make figures`" in capsys.readouterr().err
    )
    assert stored.read_bytes() == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebooks_are_worth_checking(path: Path) -> None:
    """A notebook without outputs passes nbval without being compared with anything."""
    stored = nbformat.read(path, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    checked = [cell for cell in code if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked
    assert all(cell.outputs for cell in checked)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert path.stat().st_size < 2**20
    logic = [cell for cell in code if "parameters" not in cell.metadata.get("tags", [])]  # of those, one is a line
    assert max(cell.source.count("\n") + 1 for cell in logic) <= 20


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
    for folder in ("notebooks", "figures/paper", "results/paper", "benchmarks")
    for suffix in ("ipynb", "json", "csv")
    for path in sorted((ROOT / folder).rglob(f"*.{suffix}"))
    if not path.name.endswith(".failed.ipynb")
]


def test_results_name_no_path_of_the_machine_that_made_them() -> None:
    path_of_a_machine = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users)/")
    texts = {path: path.read_text(encoding="utf-8") for path in COMMITTED}
    found = [
        str(path.relative_to(ROOT))
        for path, text in texts.items()
        if path_of_a_machine.search(text) or str(ROOT) in text or "site-packages" in text
    ]
    assert found == []


# dvc.yaml --------------------------------------------------------------------------------------------------------


COMPUTING = {
    "compute": "alone",
    "measure": "measured",
    "latent_paths": "12_latent_paths",
    "extrapolation": "09_extrapolation",
}
"""The stages that compute, and for which notebook, or which list of them."""


def computed() -> dict[str, dict]:
    """The stage that computes the results of a notebook, as if it were written out."""
    found = {}
    for stage, name in COMPUTING.items():
        for each in LISTS.get(name, [name]):
            found[each] = json.loads(json.dumps(STAGES[stage]).replace("${item.name}", each))
    return found


def test_every_notebook_is_computed_and_drawn() -> None:
    names = [path.stem for path in NOTEBOOKS if path.stem != "11_scoreboard"]
    assert sorted(computed()) == LISTS["drawn"] == names
    assert set(STAGES) == {"identity", "notebook", "scoreboard", *COMPUTING}
    assert {f"figures/${{item.profile}}/{name}/claims.json" for name in names} <= set(STAGES["scoreboard"]["deps"])
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 150


def test_a_stage_computes_and_draws_in_its_profile() -> None:
    """Not the quick profile whatever the stage is called, and with the parameters of that profile."""
    for name, stage in computed().items():
        assert stage["cmd"] == f"python -m reproduction.pipeline.compute {name} --profile ${{item.profile}}"
        assert stage["params"] == [{"params/${item.profile}.yaml": [name]}]
        assert {f".identity/{name}.experiment", "lib/neural_ode/numerics.json"} <= set(stage["deps"])
        assert [next(iter(out)) for out in stage["outs"]] == [f"results/${{item.profile}}/{name}"]
    drawing = STAGES["notebook"]
    assert drawing["cmd"].endswith("run .identity/${item.name}.ipynb --profile ${item.profile}")
    assert {"results/${item.profile}/${item.name}", ".identity/${item.name}.drawing"} <= set(drawing["deps"])
    assert [next(iter(out)) for out in drawing["outs"]] == ["figures/${item.profile}/${item.name}"]
    assert all("${profiles}" in STAGES[name]["matrix"]["profile"] for name in STAGES if name != "identity")


def test_previous_results_survive_a_failed_run() -> None:
    """DVC deletes what is not persistent before a stage runs."""
    for name, stage in STAGES.items():
        for out in stage["outs"]:
            ((path, settings),) = out.items()
            assert settings["cache"] is False, path
            assert name == "identity" or settings["persist"] is True, path


PROFILES = ("quick", "paper")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project with made-up results that DVC takes for those of its stages, in both profiles."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("lib", "notebooks", "params", "dvc.yaml", "params.yaml", ".dvcignore"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        else:
            shutil.copy(source, folder / name)
    active = (folder / "params.yaml").read_text().replace("[quick]", str(list(PROFILES)))
    (folder / "params.yaml").write_text(active)
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(folder / "lib"))  # or the stage would look at the modules of the project
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    identify(folder)
    with dvc(folder) as repo:
        for profile, name in itertools.product(PROFILES, [path.stem for path in NOTEBOOKS]):
            for part, file in (("results", "provenance.json"), ("figures", "claims.json")):
                if (part, name) != ("results", "11_scoreboard"):
                    (folder / part / profile / name).mkdir(parents=True)
                    (folder / part / profile / name / file).write_text("{}")
        repo.commit(force=True)
    yield folder
    patch.undo()


@contextmanager
def dvc(folder: Path) -> Iterator:
    """DVC in this process: one of its own takes a second to begin."""
    from dvc.repo import Repo

    before = Path.cwd()
    os.chdir(folder)
    try:
        with Repo(str(folder)) as repo:
            yield repo
    finally:
        os.chdir(before)


def identify(folder: Path) -> None:
    """What the stage `identity` does."""
    subprocess.run(STAGES["identity"]["cmd"].split(), cwd=folder, check=True)


def changed(folder: Path) -> set[str]:
    """The stages that `dvc repro` would run, after the first one, because of what changed before them."""
    identify(folder)
    with dvc(folder) as repo:
        return set(repo.status()) - {"identity"}


@pytest.fixture
def touched(clone: Path) -> Iterator:
    """Edit a file of the clone for the time of a test."""
    kept: dict[Path, str] = {}

    def edit(name: str, old: str, new: str) -> None:
        path = clone / name
        kept.setdefault(path, path.read_text(encoding="utf-8"))
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    yield edit
    for path, text in kept.items():
        path.write_text(text, encoding="utf-8")


def both(*stages: str) -> set[str]:
    """Stages in both profiles: `compute-04_mnist` is `compute@quick-04_mnist` and `compute@paper-04_mnist`."""
    parts = (stage.partition("-") for stage in stages)
    return {f"{name}@{profile}{dash}{rest}" for name, dash, rest in parts for profile in PROFILES}


ALL_COMPUTING = {
    f"{stage}-{name}" if names in LISTS else stage
    for stage, names in COMPUTING.items()
    for name in LISTS.get(names, [""])
}


@pytest.mark.slow
class TestWhatRunsAgain:
    def test_nothing_without_a_change(self, clone: Path) -> None:
        assert changed(clone) == set()

    def test_nothing_after_running_and_saving_a_notebook(self, clone: Path, touched) -> None:
        path = clone / "notebooks" / "04_mnist.ipynb"
        ran = nbformat.read(path, 4)
        for cell in ran.cells:
            cell.metadata["collapsed"] = False
            if cell.cell_type == "code":
                cell.execution_count = 99
                cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="new")]
        ran.metadata["language_info"]["version"] = "3.11.99"
        touched("notebooks/04_mnist.ipynb", path.read_text(), nbformat.writes(ran, indent=2))
        assert changed(clone) == set()

    def test_an_edit_of_prose_draws(self, clone: Path, touched) -> None:
        touched("notebooks/04_mnist.ipynb", "a residual network, and an ODE in its place", "two networks")
        assert changed(clone) == both("notebook-04_mnist")

    def test_an_edit_of_a_plot_draws(self, clone: Path, touched) -> None:
        touched("notebooks/04_mnist.ipynb", r"color=\"black\", ms=8", r"color=\"black\", ms=7")
        touched("lib/reproduction/figures/spirals.py", "__all__ = [", "MORE = 1\n__all__ = [")
        assert changed(clone) == both(
            *(f"notebook-{x}" for x in ("04_mnist", "08_spirals", "09_extrapolation", "12_latent_paths"))
        )

    def test_an_edit_of_an_experiment_computes_that_one(self, clone: Path, touched) -> None:
        touched("lib/reproduction/experiments/depth.py", "__all__ = [", "MORE = 1\n__all__ = [")
        assert changed(clone) == both("compute-01_depth", "notebook-01_depth")

    def test_an_edit_of_a_training_computes_what_uses_it(self, clone: Path, touched) -> None:
        touched("lib/reproduction/training/planar.py", "__all__ = [", "MORE = 1\n__all__ = [")
        names = ("06_density_matching", "07_maximum_likelihood")
        assert changed(clone) == both(*(f"{stage}-{name}" for stage in ("compute", "notebook") for name in names))

    def test_comments_and_docstrings_change_nothing(self, clone: Path, touched) -> None:
        touched("lib/neural_ode/stepping/adaptive.py", "import torch\n", "# PyTorch\nimport torch\n\n")
        touched("lib/neural_ode/solve.py", '"""Solve', '"""In other words, solve')
        touched("lib/reproduction/training/mnist.py", "import torch\n", "# PyTorch\nimport torch\n\n")
        touched("lib/reproduction/training/loop.py", '"""The one training loop."""', '"""The loop."""')
        assert changed(clone) == set()

    def test_the_solver_counts_by_its_behaviour(self, clone: Path, touched) -> None:
        touched("lib/neural_ode/solve.py", "__all__ = [", "MORE = 1\n__all__ = [")
        assert changed(clone) == set()
        touched("lib/neural_ode/numerics.json", "1", "2")
        drawn = {f"notebook-{name}" for name in LISTS["drawn"]}
        assert changed(clone) == both(*ALL_COMPUTING, *drawn)

    def test_a_source_that_a_notebook_shows_draws_it(self, clone: Path, touched) -> None:
        touched("lib/neural_ode/nn/ode_block.py", '"""The state at `t1`', '"""In other words, the state at `t1`')
        assert changed(clone) == both("notebook-04_mnist", "notebook-05_tolerance")

    def test_one_parameter_touches_one_notebook(self, clone: Path, touched) -> None:
        touched("params/quick.yaml", "\n  epochs: 4\n", "\n  epochs: 5\n")
        assert changed(clone) == {"compute@quick-04_mnist", "notebook@quick-04_mnist"}

    def test_a_claim_touches_the_notebook_that_decides_it(self, clone: Path, touched) -> None:
        touched("lib/reproduction/claims.yaml", "short: linear memory of a ResNet", "short: memory of a ResNet")
        assert changed(clone) == both("notebook-03_memory", "scoreboard")

    def test_other_weights_are_measured_again(self, clone: Path, touched) -> None:
        touched("results/paper/04_mnist/provenance.json", "{}", "{} ")
        touched("results/paper/08_spirals/provenance.json", "{}", "{} ")
        assert changed(clone) == {
            *("compute@paper-04_mnist", "notebook@paper-04_mnist", "measure@paper-02_adjoint"),
            "measure@paper-05_tolerance",
            *("compute@paper-08_spirals", "notebook@paper-08_spirals", "latent_paths@paper", "extrapolation@paper"),
        }


@pytest.mark.slow
def test_what_is_committed_of_full_scale_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user sees it who has cloned the project, named both profiles, and asks DVC."""
    for name in ("lib", "notebooks", "params", "results/paper", "figures/paper"):
        ignored = shutil.ignore_patterns("*.egg-info", "__pycache__", ".ipynb_checkpoints", "*.failed.ipynb")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    active = (tmp_path / "params.yaml").read_text().replace("[quick]", "[quick, paper]")
    (tmp_path / "params.yaml").write_text(active)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    identify(tmp_path)
    with dvc(tmp_path) as repo:
        stale = {stage: why for stage, why in repo.status().items() if "@quick" not in stage}
    assert stale == {}


# The runner ------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one notebook, 07_toy, which writes a figure and fails if its value is 0."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "quick.yaml").write_text("07_toy: {value: 2}\n")
    made = notebook(
        "from reproduction.workspace import Workspace",
        "work = Workspace.open('07_toy', profile)\nprint('value', value)",
        "work.write_metrics({'value': value})",
        "work.write_claims({'inverse': 1 / value})",
    )
    nbformat.write(made, tmp_path / "07_toy.ipynb")
    monkeypatch.chdir(tmp_path)
    for name in (OUTPUT_VARIABLE, DRAW_VARIABLE):
        monkeypatch.setenv(name, "")  # the runner sets it; pytest takes it back
    return tmp_path


def metrics(project: Path) -> dict:
    return json.loads((project / "figures" / "quick" / "07_toy" / "metrics.json").read_text())


def test_the_runner_publishes_results(project: Path) -> None:
    assert runner.main(["07_toy.ipynb"]) == 0
    assert metrics(project) == {"value": 2}
    executed = (project / "figures" / "quick" / "07_toy" / "07_toy.ipynb").read_text()
    assert "value 2" in executed
    assert "injected-parameters" in executed
    assert not (project / ".staging" / "quick" / "07_toy").exists()
    assert runner.main(["07_toy.ipynb"]) == 0
    assert (project / "figures" / "quick" / "07_toy" / "07_toy.ipynb").read_text() == executed  # byte for byte


def test_a_notebook_that_runs_with_its_defaults_runs_as_it_stands(project: Path) -> None:
    (project / "params" / "quick.yaml").write_text("07_toy: {value: 1}\n")
    assert runner.main(["07_toy.ipynb"]) == 0
    executed = (project / "figures" / "quick" / "07_toy" / "07_toy.ipynb").read_text()
    assert "value 1" in executed
    assert "injected-parameters" not in executed


def test_a_failing_cell_loses_nothing(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["07_toy.ipynb"]) == 0
    before = {p: p.read_bytes() for p in (project / "figures" / "quick" / "07_toy").iterdir()}
    (project / "params" / "quick.yaml").write_text("07_toy: {value: 0}\n")
    assert runner.main(["07_toy.ipynb"]) == 1
    printed = capfd.readouterr().err
    assert "ZeroDivisionError" in printed
    assert "figures/quick/07_toy.failed.ipynb" in printed
    assert {path: path.read_bytes() for path in before} == before
    failed = project / "figures" / "quick" / "07_toy.failed.ipynb"
    assert "ZeroDivisionError" in failed.read_text()
    # The next run takes the notebook of the failed one away.
    (project / "params" / "quick.yaml").write_text("07_toy: {value: 4}\n")
    assert runner.main(["07_toy.ipynb"]) == 0
    assert metrics(project) == {"value": 4}
    assert not failed.exists()


@pytest.mark.parametrize("params", ["{vlaue: 3}", "{value: three}", "{value: 1.5}"])
def test_wrong_parameters_stop_the_runner_before_anything_runs(
    project: Path, params: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "params" / "quick.yaml").write_text(f"07_toy: {params}\n")
    assert runner.main(["07_toy.ipynb"]) == 1
    assert "params/quick.yaml, section 07_toy: " in capfd.readouterr().err
    assert not (project / "figures").exists()


def test_a_dead_kernel_is_reported(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = notebook("import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    nbformat.write(made, project / "07_toy.ipynb")
    assert runner.main(["07_toy.ipynb"]) == 1
    assert "its kernel died" in capfd.readouterr().err
    assert (project / "figures" / "quick" / "07_toy.failed.ipynb").exists()


def test_results_that_are_no_longer_made_go_away(project: Path) -> None:
    assert runner.main(["07_toy.ipynb"]) == 0
    figures = project / "figures" / "quick"
    stale, other = figures / "07_toy" / "old.svg", figures / "08_other" / "new.svg"
    for path in (stale, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made before")
    assert runner.main(["07_toy.ipynb"]) == 0
    assert not stale.exists()
    assert other.exists()
    assert list((project / ".staging" / "quick").iterdir()) == []


def test_a_notebook_computes_nothing_in_the_pipeline(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = notebook(
        "from reproduction.experiments.search import first_stable as task\n"
        "from reproduction.workspace import Workspace\n"
        "work = Workspace.open('07_toy', profile)",
        "work.store.obtain(task, {'a': {}}, label='a')",
    )
    nbformat.write(made, project / "07_toy.ipynb")
    assert runner.main(["07_toy.ipynb"]) == 1
    assert re.search(
        r"no result a \(it was not made\): make it with `dvc repro notebook@quick-07_toy` or",
        capfd.readouterr().err,
    )


# Publishing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(project: Path) -> Path:
    """The project with figures of a first run; a second run would change all of them."""
    made = nbformat.read(project / "07_toy.ipynb", as_version=4)
    made.cells.append(
        nbformat.v4.new_code_cell(
            "from reproduction.files import write_atomically\n"
            "for name in ('a', 'b'):\n"
            "    write_atomically(work.figure(name), f'drawn {value}')\n"
            "write_atomically(work.figure(f'only_{value}').with_suffix('.svg'), '<svg/>')"
        )
    )
    nbformat.write(made, project / "07_toy.ipynb")
    assert runner.main(["07_toy.ipynb"]) == 0
    (project / "params" / "quick.yaml").write_text("07_toy: {value: 3}\n")
    return project


def results(project: Path) -> dict[str, bytes]:
    """What is published, and what else lies there."""
    return {
        str(path.relative_to(project)): path.read_bytes()
        for path in sorted((project / "figures").rglob("*"))
        if path.is_file()
    }


def test_the_second_run_replaces_everything(trained: Path) -> None:
    before = results(trained)
    assert runner.main(["07_toy.ipynb"]) == 0
    after = results(trained)
    assert after["figures/quick/07_toy/a"] == b"drawn 3"
    assert set(before) ^ set(after) == {f"figures/quick/07_toy/only_{n}.svg" for n in (2, 3)}
    assert not any(after[name] == before[name] for name in set(before) & set(after))


def test_a_file_that_cannot_be_replaced_leaves_all_as_it_was(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    last = trained / "figures" / "quick" / "07_toy" / "b"
    last.unlink()
    last.mkdir()
    before = results(trained)
    assert runner.main(["07_toy.ipynb"]) == 1
    assert "nothing was published" in capfd.readouterr().err
    assert results(trained) == before
    last.rmdir()
    assert runner.main(["07_toy.ipynb"]) == 0
    assert last.read_bytes() == b"drawn 3"


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, method: str, number: int, code: int) -> Iterator[list[Path]]:
    """A call of a method of `Path` on a published file fails, as on a full disk; the calls."""
    real, calls = getattr(Path, method), []

    def counted(self: Path, *arguments: object, **options: object) -> object:
        if "figures" in self.parts and ".staging" not in self.parts and not options:
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
        for name in ("figures/quick/07_toy/fig.svg", "figures/quick/07_toy/a", "figures/quick/07_toy/b"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    (root / "figures/quick/07_toy/outdated.svg").write_text("old")
    (stage / "figures/quick/07_toy/added.svg").write_text("new")
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
    assert results(trained)["figures/quick/07_toy/b"] == b"drawn 3"


def test_a_failing_cell_is_named_even_if_nothing_can_be_kept(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "params" / "quick.yaml").write_text("07_toy: {value: 0}\n")
    (project / "figures" / "quick" / "07_toy.failed.ipynb").mkdir(parents=True)
    assert runner.main(["07_toy.ipynb"]) == 1
    printed = capfd.readouterr().err
    assert "07_toy, cell 6: ZeroDivisionError: division by zero" in printed
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


def test_results_are_computed_once_at_a_time(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "params" / "quick.yaml").write_text("04_mnist: {}\n")
    (project / "notebooks").symlink_to(ROOT / "notebooks")
    with locked(project / ".staging" / "quick" / "04_mnist.results.lock", "the computation"):
        assert computer.main(["04_mnist"]) == 1
    assert f"04_mnist.results in profile 'quick' is under way already: wait until process {os.getpid()}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("notebook", "words"), [("04_mnst", "did you mean '04_mnist'?"), ("11_scoreboard", "; known: 01_depth, ")]
)
def test_a_notebook_that_computes_nothing_is_named(
    notebook: str, words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert computer.main([notebook]) == 1
    shown = capsys.readouterr().err
    assert f"unknown notebook with an experiment '{notebook}'" in shown
    assert words in shown
    assert not (project / ".staging").exists()


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
    (project / ".staging" / "quick").mkdir(parents=True)
    (project / ".staging" / "quick" / "07_toy").write_text("in the way")
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
