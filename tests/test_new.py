"""An experiment is begun by one command, and then computes, draws and decides."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reproduction.claims import load_claims
from reproduction.pipeline import new
from reproduction.pipeline.contents import captions, load_contents
from reproduction.pipeline.new import begin, insert_item, insert_section
from reproduction.pipeline.parameters import check_parameters, declared_parameters, read_parameters

ROOT = Path(__file__).parents[1]
NAME = "17_toy"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy without results."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("lib", "notebooks", "params"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", "params.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    monkeypatch.chdir(copy)
    return copy


def texts(project: Path) -> dict[Path, str]:
    return {file: file.read_text() for file in project.rglob("*") if file.suffix in {".yaml", ".py", ".ipynb"}}


@pytest.mark.slow
def test_what_was_begun_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = texts(project)
    assert new.main([NAME, "A toy"]) == 0
    assert f"dvc repro notebook@quick-{NAME}" in capsys.readouterr().out
    after = texts(project)
    for file, text in before.items():
        if file.name != "dvc.yaml":  # whose lists are broken into lines anew
            assert set(text.splitlines()) <= set(after[file].splitlines()), file

    declared = declared_parameters(project / "notebooks" / f"{NAME}.ipynb")
    for profile in ("quick", "paper"):
        given = read_parameters(project / "params" / f"{profile}.yaml", NAME) | {"profile": profile}
        check_parameters(given, declared, profile)
        assert set(given) == set(declared)
    assert load_claims(project / "lib" / "reproduction" / "claims.yaml")["toy.example"].notebook == NAME
    told = load_contents(project / "lib" / "reproduction" / "contents.yaml")
    assert captions(told)[f"{NAME}/result"]
    assert sorted(told.notebooks) == sorted(path.stem for path in (project / "notebooks").glob("*.ipynb"))
    for command in ("check", "format --check"):
        linted = [sys.executable, "-m", "ruff", *command.split(), "lib", "notebooks"]
        assert subprocess.run(linted, capture_output=True).returncode == 0, command

    made = project / "figures" / "quick" / NAME
    environment = os.environ | {"PYTHONPATH": str(project / "lib")}
    for module in (("identity", ".identity"), ("compute", NAME), ("run", f".identity/{NAME}.ipynb")):
        profile = [] if module[0] == "identity" else ["--profile=quick"]
        command = [sys.executable, "-m", f"reproduction.pipeline.{module[0]}", module[1], *profile]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert {"claims.json", "metrics.json", "result.png", "result.svg"} <= {file.name for file in made.iterdir()}
    assert "holds" in (made / f"{NAME}.ipynb").read_text()


def test_stages_have_the_notebook_too(project: Path) -> None:
    before = yaml.safe_load((project / "dvc.yaml").read_text())
    begin(project, NAME, "A toy")
    after = yaml.safe_load((project / "dvc.yaml").read_text())
    for old, now in zip(before["vars"], after["vars"], strict=True):
        ((name, names),) = old.items()
        assert now == {name: names if name == "measured" else sorted([*names, NAME])}
    added = set(after["stages"]["scoreboard"]["deps"]) - set(before["stages"]["scoreboard"]["deps"])
    assert added == {f"figures/${{item.profile}}/{NAME}/claims.json"}
    assert set(after["metrics"]) - set(before["metrics"]) == {
        f"figures/{profile}/{NAME}/metrics.json" for profile in ("paper", "quick")
    }
    assert set(after["plots"]) - set(before["plots"]) == {f"figures/paper/{NAME}/result.svg"}
    for part in ("vars", "stages", "metrics", "plots"):
        assert len(after[part]) >= len(before[part])
    others = {name: stage for name, stage in after["stages"].items() if name != "scoreboard"}
    assert others == {name: stage for name, stage in before["stages"].items() if name != "scoreboard"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toy", "must be two digits and lower-case words, like 17_name, got 'toy'"),
        ("17_Toy", "must be two digits"),
        ("../17_toy", "must be two digits"),
        ("04_toy", "number 04 is taken by 04_mnist"),
        ("17_mnist", "an experiment 'mnist' is there"),
        ("17_adjoint", "an experiment 'adjoint' is there"),
    ],
)
def test_a_name_that_cannot_be_used_changes_nothing(
    name: str, words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = texts(project)
    assert new.main([name, "A toy"]) == 1
    assert words in capsys.readouterr().err
    assert texts(project) == before


def test_a_section_goes_before_the_next_one() -> None:
    text = "# first\n01_a:\n  x: 1\n\n03_c:\n  x: 3\n"
    assert (
        insert_section(text, "02_b", "02_b:\n  x: 2\n")
        == "# first\n01_a:\n  x: 1\n\n02_b:\n  x: 2\n\n03_c:\n  x: 3\n"
    )
    assert insert_section(text, "04_d", "04_d:\n") == f"{text}\n04_d:\n"
    close = "all:\n  01_a: 1\n  03_c: 3\n"
    assert insert_section(close, "02_b", "  02_b: 2\n", "  ") == "all:\n  01_a: 1\n  02_b: 2\n  03_c: 3\n"


def test_a_list_keeps_its_order_and_its_width() -> None:
    assert insert_item("x: [a, c]\ny: 1\n", "x: [", "b") == "x: [a, b, c]\ny: 1\n"
    names = [f"{k:02}_{'name' * 5}" for k in range(9)]
    made = insert_item(f"vars:\n  - x: [{', '.join(names)}]\n", "  - x: [", "99_last")
    assert yaml.safe_load(made) == {"vars": [{"x": [*names, "99_last"]}]}
    assert max(map(len, made.splitlines())) <= 120
    with pytest.raises(new.InvalidArgumentError, match=r"dvc\.yaml has no list 'z: \[', where b belongs"):
        insert_item("x: [a]\n", "z: [", "b")
