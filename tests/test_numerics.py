"""The golden numbers: what the library gives is what it gave, and a change of its numbers is seen."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from neural_ode.control.controllers import IntegralController
from neural_ode.gradients.augmented import AugmentedSystem
from neural_ode.methods import METHODS, ExplicitRungeKutta, ImplicitRungeKutta, Method
from reproduction.pipeline.numerics import CASES, FILE, differences, measured, text

STORED = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_on_file(name: str) -> None:
    assert not differences(name, STORED[name], measured(CASES[name]))


def test_the_file_has_all_cases_and_is_as_it_is_written() -> None:
    assert list(STORED) == list(CASES)
    assert FILE.read_text() == text(STORED)


def test_every_method_and_gradient_has_a_case() -> None:
    methods = {case.method for case in CASES.values() if isinstance(case.method, str)}
    assert methods == set(METHODS) - {"scipy_solver"}  # whose numbers are SciPy's


# What a change of the library's numbers looks like: each has to be noticed.


def off(name: str, **changes: Any) -> list[str]:
    return differences(name, STORED[name], measured(CASES[name], **changes))


def nudged(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same with one coefficient, the last that is not zero, off by a millionth of its size."""
    last = max(i for i, value in enumerate(values) if value != 0)
    off_by = 1 + Fraction(1, 10**6) if isinstance(values[last], Fraction | int) else 1 + 1e-6
    return (*values[:last], values[last] * off_by, *values[last + 1 :])


def changed_tableaus() -> Iterator[tuple[str, str, Any]]:
    """Every Runge-Kutta method with one coefficient off, in each part of its tableau that has one."""
    for name, method in METHODS.items():
        if not isinstance(method, ExplicitRungeKutta | ImplicitRungeKutta):
            continue
        for part in ("a", "b", "c", "b_error", "dense"):
            value = getattr(method.tableau, part)
            if part in {"a", "dense"} and value is not None:
                rows = [i for i, row in enumerate(value) if any(row)]
                value = (*value[: rows[-1]], nudged(value[rows[-1]]), *value[rows[-1] + 1 :]) if rows else None
            elif value is not None:
                value = nudged(value) if any(value) else None
            if value is not None:
                changed: Any = replace(method.tableau, **{part: value})
                yield name, part, type(method)(changed)


CHANGED = list(changed_tableaus())


@pytest.mark.parametrize(("name", "part", "method"), CHANGED, ids=[f"{name}-{part}" for name, part, _ in CHANGED])
def test_a_coefficient(name: str, part: str, method: Method) -> None:
    assert off(f"method {name}", method=method)


def test_a_sign_in_the_adjoint_equation(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., torch.Tensor] = AugmentedSystem.__call__

    def wrong(self: AugmentedSystem, t: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        z, a, *gradients = self.unpack(right(self, t, state))
        return self.pack(z, -a, gradients)

    monkeypatch.setattr(AugmentedSystem, "__call__", wrong)
    assert off("gradient backsolve")
    assert off("tuple backsolve")


@pytest.mark.parametrize("name", ["method dopri5", "rows", "method kvaerno5", "gradient recursive_checkpoint"])
def test_step_control(name: str) -> None:
    assert off(name, controller=IntegralController(safety=0.901))
    assert off(name, norm=lambda x: 1.001 * torch.linalg.vector_norm(x, dim=-1).amax() / x.shape[-1] ** 0.5)


@pytest.mark.parametrize("kind", ["forward", "with_backward", "y", "gradients"])
def test_every_number_counts(kind: str) -> None:
    changed = json.loads(json.dumps(STORED["method dopri5"]))
    if kind == "gradients":
        changed[kind]["params"][-1] *= 1 + 1e-6
    else:
        changed[kind][-1] += 1e-6 if kind == "y" else 1
    assert differences("method dopri5", STORED["method dopri5"], changed)
