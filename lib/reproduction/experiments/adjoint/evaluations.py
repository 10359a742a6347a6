"""What the backward solve costs under three norms of its error control."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from neural_ode.errors import SolverError, needs
from neural_ode.gradients import Backsolve
from reproduction.experiments.adjoint.measuring import MAX_STEPS, loss_gradient
from reproduction.experiments.adjoint.trials import Trial

with needs("notebooks"):
    from tqdm import tqdm

__all__ = ["backward_evaluations"]


def backward_evaluations(trials: Mapping[str, Trial], tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """Evaluations of the backward solve with all gradients in the error norm, with the seminorm (Kidger et al.
    2021), and with the parameters' gradients as a quadrature; `None` where one of them cannot be finished."""
    norms = {"all": Backsolve(), "seminorm": Backsolve(norm="seminorm"), "quadrature": Backsolve(quadrature=True)}
    rows = []
    cases = list(itertools.product(trials.items(), tolerances))
    for (name, trial), tolerance in tqdm(cases, desc="backward evaluations", unit="case"):
        row: dict[str, Any] = {"problem": name, "tolerance": tolerance, "saved": None}
        for kind, gradient in norms.items():
            row[kind] = None
            with suppress(SolverError):
                _, stats = loss_gradient(
                    trial, rtol=tolerance, atol=tolerance, gradient=gradient, max_steps=MAX_STEPS
                )
                assert stats.backward is not None
                row["forward"], row[kind] = stats.nfe, stats.backward.nfe
        if row["all"] is not None and row["seminorm"] is not None:
            row["saved"] = 1 - row["seminorm"] / row["all"]
        rows.append(row)
    return rows
