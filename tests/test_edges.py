"""Axes that end where values stop meaning anything."""

import math

import matplotlib.pyplot as plt
import pytest

from reproduction.figures.edges import Edge, name_rows, parted, plot_to_edge

EDGE = Edge(limit=10.0, beyond=80.0, unfinished=900.0)


def test_values_are_parted_at_the_limit() -> None:
    inside, above = parted([1e-3, 10.0, 10.1, 1e40, math.inf, None, math.nan], EDGE)
    assert inside[:2] == [1e-3, 10.0]
    assert all(math.isnan(y) for y in inside[2:])
    assert all(math.isnan(y) for y in above[:2])
    assert above[2:] == [80.0, 80.0, 80.0, 900.0, 900.0]


def test_rows_have_markers_without_lines_and_the_curve_one_name() -> None:
    _, panel = plt.subplots()
    panel.set(xscale="log", yscale="log")
    plot_to_edge(panel, [1.0, 2.0, 3.0], [0.1, 1e9, None], EDGE, aside=2.0, marker="o", label="name")
    curve, rows = panel.get_lines()
    assert list(curve.get_xdata()) == [1.0, 2.0, 3.0]
    assert list(rows.get_xdata()) == [2.0, 4.0, 6.0]
    assert list(rows.get_ydata())[1:] == [80.0, 900.0]
    assert (rows.get_linestyle(), rows.get_marker()) == ("None", "o")
    assert rows.get_color() == curve.get_color()
    assert panel.get_legend_handles_labels()[1] == ["name"]
    plt.close()


def test_ticks_name_the_rows() -> None:
    _, panels = plt.subplots(1, 2, sharey=True)
    panels[0].set_yscale("log")
    name_rows(panels, EDGE, lowest=3e-5)
    ticks = zip(panels[0].get_yticks(), panels[0].get_yticklabels(), strict=True)
    names = {round(place, 6): text.get_text() for place, text in ticks}
    assert names == {1e-4: "$10^{-4}$", 1e-2: "$10^{-2}$", 1.0: "$10^{0}$", 80.0: "> 10", 900.0: "not finished"}
    assert panels[1].get_ylim() == pytest.approx((3e-5, 2700.0))
    assert [len(panel.patches) for panel in panels] == [1, 1]
    plt.close()
