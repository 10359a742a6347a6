"""Work–precision diagrams: what accuracy costs, in seconds and in evaluations.

Hairer, Nørsett & Wanner I, section II.10: every method is run over a range of tolerances, and the error it
makes is set against the work it took.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import contenders
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.timing import Contender, arrays, measure
from neural_ode import METHODS

__all__ = ["precision_rows"]

_OURS = ("dopri5", "tsit5", "dopri8", "bosh3", "adams")
_SLOW = 0.3
"""Seconds: a contender whose solve takes longer is not asked for a tighter tolerance."""


def precision_rows(name: str, threads: int, quick: bool) -> list[dict[str, Any]]:
    """Error, median time and evaluations for every library, method and tolerance."""
    problem = PROBLEMS[name](quick)
    reference = _reference(problem)
    # Below 1e-6 single precision shows the rounding of the state, not the method.
    exponents = range(3, 10 if problem.dtype == torch.float64 else 7)
    tolerances = [10.0**-k for k in (exponents[:3:2] if quick else exponents)]
    entered = {key: entry for key, entry in _entries(problem).items() if not (quick and entry(1e-3).compiles)}
    rows: list[dict[str, Any]] = []
    for tolerance in tolerances:
        taking_part = [replace(entry(tolerance), name="/".join(key)) for key, entry in entered.items()]
        found, skipped = measure(taking_part, 0.0 if quick else 0.5, (1, 1) if quick else (3, 15))
        for library, method in list(entered):
            row = {
                "problem": name,
                "library": library,
                "method": method,
                "tolerance": tolerance,
                "threads": threads,
            }
            measured = found.get(f"{library}/{method}")
            if measured is None:
                rows.append(row | {"skipped": skipped[f"{library}/{method}"]})
                del entered[library, method]
                continue
            seconds = float(np.median(measured.seconds))
            error = max(float(np.abs(v - r).max()) for v, r in zip(measured.values, reference, strict=True))
            rows.append(row | {"error": error, "seconds": seconds, "nfe": measured.nfe})
            if seconds > _SLOW:
                del entered[library, method]
    return rows


def _entries(problem: Problem) -> dict[tuple[str, str], Callable[[float], Contender]]:
    """Who takes part, by library and method, as functions of the tolerance."""
    entries: dict[tuple[str, str], Callable[[float], Contender]] = {}
    for method in (name for name in _OURS if name in METHODS):
        entries["neural_ode", method] = partial(contenders.ours, problem, method)
    entries["neural_ode, compiled", "dopri5"] = partial(contenders.ours, problem, "dopri5", compile=True)
    for method in ("dopri5", "dopri8", "bosh3"):
        entries["torchdiffeq", method] = partial(contenders.torchdiffeq, problem, method)
    for method in ("dopri5", "tsit5", "dopri8"):
        entries["diffrax", method] = contenders.diffrax(problem, method)
    if problem.plain:
        for method in ("dopri5", "tsit5"):
            entries["torchode", method] = partial(contenders.torchode, problem, method, mode="script")
    if problem.plain and problem.dtype == torch.float64:
        for method in ("RK45", "DOP853", "LSODA"):
            entries["SciPy", method] = partial(contenders.scipy, problem, method)
    return entries


def _reference(problem: Problem) -> list[NDArray[np.float64]]:
    """The solution in double precision, where possible not by the library that is measured."""
    parts = tuple(part.double() for part in problem.parts)
    y0 = parts if isinstance(problem.y0, tuple) else parts[0]
    exact = replace(problem, f=deepcopy(problem.f).double(), y0=y0, t=problem.t.double())
    if problem.plain:
        return arrays(contenders.scipy(exact, "DOP853", 3e-14).prepare()()[0])
    return arrays(contenders.ours(exact, *problem.reference).prepare()()[0])
