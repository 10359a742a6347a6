"""What the README says works."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import yaml

import neural_ode

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    for example in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(example, "README.md", "exec"), {})
    forward, backward = capsys.readouterr().out.split()
    assert int(forward) > 8
    assert int(backward) > 8


def test_the_table_of_methods_is_complete() -> None:
    table = README[README.index("| `method=` |") : README.index("### Instead of torchdiffeq")]
    assert set(re.findall(r"`(\w+)`", table)) >= set(neural_ode.METHODS)


def test_links_lead_somewhere() -> None:
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data" / "mnist" / "README.md"):
        for target in re.findall(r"\]\(([^)]+)\)", file.read_text()):
            assert target.startswith("https://") or (file.parent / target).exists(), target


def test_figures_in_the_table_are_made_by_the_pipeline() -> None:
    made = (ROOT / "dvc.yaml").read_text().replace("${item.profile}", "quick")
    named = re.findall(r"^\| `(\w+\.svg)`", README, re.MULTILINE)
    assert len(named) >= 4
    for name in named:
        assert f"figures/quick/{name}" in made


def test_every_notebook_is_listed() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in README


def test_every_make_target_is_phony_and_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    for target in targets[1].split():
        assert re.search(rf"^# make {target}\b", makefile, re.MULTILINE), target


def test_citation_is_yaml() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["year"] == 2018


def test_docstring_examples() -> None:
    assert doctest.testmod(importlib.import_module("neural_ode.solve")).failed == 0
