"""Figures with controls: what is stored of them, and what a control changes."""

import copy
import json

import nbformat
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from nbclient import NotebookClient

from neural_ode.errors import InvalidArgumentError
from reproduction.figures.interactive import control, interactive_figure
from reproduction.pipeline.clean import clean

DRAW = """
import matplotlib.pyplot as plt
from reproduction.figures.interactive import interactive_figure


def draw(height=2.0, color="green"):
    figure, panel = plt.subplots(figsize=(3, 2))
    panel.plot([0, height], color=color)
    return figure


interactive_figure(draw, height=[1.0, 2.0, 3.0], color=["green", "red"])
"""
MOVE = """
import gc
import ipywidgets

(slider,) = (one for one in gc.get_objects() if type(one) is ipywidgets.SelectionSlider)
slider.value = 3.0
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """One figure whose slider has moved, and two that were left as they are."""
    cells = [nbformat.v4.new_code_cell(cell) for cell in (DRAW, MOVE, DRAW, DRAW)]
    resources = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    return NotebookClient(
        nbformat.v4.new_notebook(cells=cells), kernel_name="python3", resources=resources
    ).execute()


@pytest.mark.slow
def test_a_static_figure_is_stored_and_a_control_replaces_it(executed: nbformat.NotebookNode) -> None:
    moved, move, left, _ = executed.cells
    *controls, picture = left.outputs
    assert [output.data["text/plain"] for output in controls] == [
        "height: 2 (can be changed where the notebook runs)",
        "color: green (can be changed where the notebook runs)",
    ]
    assert picture.data["text/plain"] == "Figure: height 2, color green"
    assert picture.data["image/png"]
    assert len(moved.outputs) == 3  # replaced, not added
    assert moved.outputs[-1].data["text/plain"] == "Figure: height 3, color green"
    assert moved.outputs[-1].data["image/png"] != picture.data["image/png"]
    assert move.outputs == []


@pytest.mark.slow
def test_the_state_of_widgets_is_not_stored(executed: nbformat.NotebookNode) -> None:
    *_, first, second = executed.cells
    assert first.outputs != second.outputs  # each names widgets of its own
    cleaned = clean(copy.deepcopy(executed))
    assert "widget" not in json.dumps([cell.outputs for cell in cleaned.cells])
    assert "widget" not in json.dumps(cleaned.metadata)
    *_, first, second = cleaned.cells
    assert first.outputs == second.outputs


def draw(height: float = 2.0, color: str = "green", plain: float | None = None) -> Figure:
    return plt.figure()


def test_defaults_must_be_among_the_choices() -> None:
    with pytest.raises(InvalidArgumentError, match=r"height=2.0 is none of its choices \[1.0, 3.0\]"):
        interactive_figure(draw, height=[1.0, 3.0])
    with pytest.raises(InvalidArgumentError, match="argument 'width' with a default"):
        interactive_figure(draw, width=[1.0])
    with pytest.raises(InvalidArgumentError, match="argument 'height' with a default"):
        interactive_figure(lambda height: plt.figure(), height=[1.0])


def test_numbers_have_a_slider_and_words_a_menu() -> None:
    slider, menu = control("flow_time", [0.0, 0.5], 0.5), control("set", ["a", "b"], "a")
    assert type(slider).__name__ == "SelectionSlider"
    assert slider.description == "flow time"
    assert not slider.continuous_update
    assert type(menu).__name__ == "Dropdown"
