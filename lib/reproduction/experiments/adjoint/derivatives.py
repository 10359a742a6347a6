"""Gradients of the times, and second derivatives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_ode import solve
from neural_ode.gradients import Gradient
from reproduction.experiments.trials import CHOICES, REFERENCE, Trial, all_trials, last_state
from reproduction.results import json_bytes

__all__ = ["derivatives_run", "hessian_vector_error", "time_gradient_error"]


def time_gradient_error(trial: Trial, gradient: str | Gradient, step: float = 2e-3) -> float:
    """Relative difference of the gradients of start and end time to five-point differences of a tight solve."""

    def loss(t: Tensor, **how: Any) -> Tensor:
        return trial.loss(last_state(solve(trial.f, trial.y0, t, **how).y))

    def exact(t: Tensor) -> Tensor:
        return loss(t, method="dopri8", rtol=REFERENCE, atol=REFERENCE)

    t = torch.tensor([0.3, 0.3 + trial.end], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(t, gradient=gradient, rtol=1e-10, atol=1e-10), t)
    with torch.no_grad():
        shifts = step * torch.eye(2, dtype=torch.float64)
        near = torch.stack([exact(t + s) - exact(t - s) for s in shifts])
        far = torch.stack([exact(t + 2 * s) - exact(t - 2 * s) for s in shifts])
    differences = ((8 * near - far) / (12 * step)).to(found)
    return float((found - differences).norm() / differences.norm())


def hessian_vector_error(trial: Trial, tolerance: float = 1e-10) -> float:
    """Relative error of a Hessian-vector product by `backsolve` differentiated twice, against `direct`."""
    torch.manual_seed(1)
    (start,) = trial.parts()
    direction = torch.randn_like(start)

    def product(gradient: str) -> Tensor:
        y0 = start.clone().requires_grad_()
        how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "gradient": gradient}
        loss = trial.loss(last_state(solve(trial.f, y0, [trial.start, trial.end], **how).y))
        (first,) = torch.autograd.grad(loss, y0, create_graph=True)
        (second,) = torch.autograd.grad((first * direction).sum(), y0)
        return second

    exact = product("direct")
    return float((product("backsolve") - exact).norm() / exact.norm())


def derivatives_run(
    *, problem: str, weights: str | None, files: Mapping[str, Path], device: torch.device
) -> dict[str, bytes]:
    """Both errors as a run of `reproduction.results`: `times` by choice, `hessian`.

    Args:
        problem, weights, files, device: see `accuracy_run`.
    """
    trial = all_trials(files, device)[problem]
    times = {name: time_gradient_error(trial, choice) for name, choice in CHOICES.items()}
    return {".json": json_bytes({"times": times, "hessian": hessian_vector_error(trial)})}
