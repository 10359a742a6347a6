"""The recipes of docs/recipes.md run, and print what stands behind them."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
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
