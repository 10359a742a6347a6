"""How notebooks show tables."""

import re

import numpy as np
import pandas as pd
import pytest

from reproduction.display import column_text, show_table


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5, 0.25, 12.0], ["0.50", "0.25", "12.00"]),
        ([1.6, 0.41], ["1.60", "0.41"]),
        ([1.0, 20.0, None], ["1", "20", "–"]),
        ([-0.123, float("nan")], ["−0.123", "–"]),
        ([3.0, float("inf"), -2.0], ["3", "∞", "−2"]),
        ([1e-9, 12.0], ["10⁻⁹", "12"]),
        ([1.5e-6, 2.5e-6], ["1.5·10⁻⁶", "2.5·10⁻⁶"]),
        ([0.0, 0.25], ["0.00", "0.25"]),
        ([123456, 7], ["123456", "7"]),
        (["a", None, 3], ["a", "–", "3"]),
        ([True, False], ["True", "False"]),
        ([None, None], ["–", "–"]),
        ([np.float64(1.25), np.int64(2)], ["1.25", "2.00"]),
        ([], []),
        ([1.45, 0.382], ["1.450", "0.382"]),
        ([{"noise_factor": 10.0, "lr": 3e-2}, {}], ["noise factor 10, lr 0.03", "nothing changed"]),
        ([{"steps": 2000, "schedule": "constant"}], ["steps 2000, schedule constant"]),
    ],
)
def test_a_column_as_text(values: list, shown: list[str]) -> None:
    assert column_text(values) == shown


def test_more_digits_where_they_are_asked_for() -> None:
    assert column_text([0.123456], digits=5) == ["0.12346"]
    assert column_text([1234.5678, 1e-9], digits=5) == ["1235", "10⁻⁹"]


def cells(html: str, tag: str) -> list[tuple[str, str]]:
    return re.findall(rf'<{tag} style="text-align: (\w+)"[^>]*>(.*?)</{tag}>', html)


def test_numbers_stand_right_and_text_left() -> None:
    table = pd.DataFrame({"name": ["a < b", None], "size": [1.5, None]}, index=pd.Index([1e-5, 0.25], name="tol."))
    html = show_table(table).data
    assert cells(html, "td") == [("left", "a &lt; b"), ("right", "1.5"), ("left", "–"), ("right", "–")]
    assert cells(html, "th") == [
        ("left", ""),
        ("left", "name"),
        ("right", "size"),
        ("left", "10⁻⁵"),
        ("left", "0.25"),
    ]


def test_rows_with_two_names_and_columns_with_two() -> None:
    rows = pd.MultiIndex.from_tuples([("x", 1e-3), ("x", 1e-4)], names=["which", "tol."])
    columns = pd.MultiIndex.from_tuples([("a", "n"), ("a", "m")])
    html = show_table(pd.DataFrame([[1, "p"], [2, "q"]], index=rows, columns=columns)).data
    assert cells(html, "td") == [("right", "1"), ("left", "p"), ("right", "2"), ("left", "q")]
    assert 'rowspan="2"' in html
    assert ("left", "0.001") in cells(html, "th")


def test_rows_that_are_counted_have_no_names() -> None:
    html = show_table(pd.DataFrame({"name": ["a"], "n": [3]})).data
    assert cells(html, "th") == [("left", "name"), ("right", "n")]


def test_long_text_is_whole_and_tables_may_be_empty() -> None:
    assert "word " * 80 + "end" in show_table(pd.DataFrame({"a": ["word " * 80 + "end"]})).data
    assert "<table" in show_table(pd.DataFrame({"a": []})).data
