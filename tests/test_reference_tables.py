"""The tables of the reference say what the library does."""

import re

import pytest
import torch

from neural_ode import GRADIENTS, METHODS, solve
from neural_ode.errors import InvalidArgumentError
from reproduction.pipeline.reference_tables import gradients_table, methods_table


def rows(table: str) -> dict[str, list[str]]:
    """The cells of each row, by the name in its first one."""
    cells = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in table.splitlines()[2:]]
    return {first.strip("`"): others for first, *others in cells}


METHOD_ROWS, GRADIENT_ROWS = rows(methods_table()), rows(gradients_table())


def test_every_tableau_has_a_row() -> None:
    assert set(METHOD_ROWS) == {name for name, method in METHODS.items() if hasattr(method, "tableau")}
    assert set(GRADIENT_ROWS) == set(GRADIENTS)


@pytest.mark.parametrize("name", METHOD_ROWS)
def test_evaluations_are_as_many_as_the_table_says(name: str) -> None:
    """Three equal steps evaluate each stage; a last one that is the first of the next step counts once."""
    order, stages, controlled, fsal, dense, source = METHOD_ROWS[name]
    method = METHODS[name]
    assert source
    assert (dense == "yes") == (method.tableau.dense is not None)
    if not hasattr(method.tableau, "fsal"):
        return
    assert int(order) == method.order
    assert (fsal == "yes") == method.tableau.fsal
    calls = 0

    def f(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return -y

    solve(f, torch.ones(1, dtype=torch.float64), [0.0, 1.0, 2.0, 3.0], method=name, step_size=1.0)
    reused = 1 if fsal == "yes" else 0
    assert calls == 3 * int(stages) - 2 * reused
    if controlled == "yes":
        assert solve(f, torch.ones(1), [0.0, 1.0], method=name, rtol=1e-2, atol=1e-2).stats.accepted > 0


@pytest.mark.parametrize("name", GRADIENT_ROWS)
@pytest.mark.parametrize("what", ["batched", "dense"])
def test_a_gradient_can_do_what_the_table_says(name: str, what: str) -> None:
    y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    field = torch.nn.Linear(2, 2).double()

    def run() -> None:
        solve(lambda t, y: field(y), y0, [0.0, 1.0], gradient=name, params=field.parameters(), **{what: True})

    if GRADIENT_ROWS[name][1 + ("batched", "dense").index(what)] == "yes":
        run()
    else:
        with pytest.raises(InvalidArgumentError):
            run()
