"""The recipes of docs/recipes.md run, and print what stands behind them."""

import re
from pathlib import Path

import nbformat
import pytest

from reproduction.pipeline.recipes import recipes_notebook

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```", TEXT, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_prints_what_it_says(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = RECIPES[title]
    exec(compile(code, title, "exec"), {"__name__": "recipe"})
    said = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert said
    assert capsys.readouterr().out.splitlines() == said


def test_every_recipe_is_found() -> None:
    assert len(RECIPES) == TEXT.count("```python") >= 10


def test_the_notebook_has_these_recipes_and_what_they_print() -> None:
    stored = nbformat.read(ROOT / "docs" / "00_library.ipynb", as_version=4)
    made = recipes_notebook(TEXT)
    assert [(cell.id, cell.cell_type, cell.source) for cell in stored.cells] == [
        (cell.id, cell.cell_type, cell.source) for cell in made.cells
    ], "make it again with `python -m reproduction.pipeline.recipes`"
    programs = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.source + "\n" for cell in programs] == list(RECIPES.values())
    for cell in programs:
        said = re.findall(r"^print\(.*\)  # (.*)$", cell.source, re.MULTILINE)
        assert "".join(output.get("text", "") for output in cell.outputs).splitlines() == said
