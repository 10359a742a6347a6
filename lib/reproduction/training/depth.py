"""Training the networks of one number: Figure 1."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from reproduction.models.depth import DEPTH_NETWORKS
from reproduction.progress import tqdm
from reproduction.training.weights import run_files

__all__ = ["TARGETS", "depth_run", "inputs", "root_mean_square", "stairs", "train"]


def inputs(n: int) -> Tensor:
    """`n` evenly spaced numbers from -4 to 4, float64, shape (n, 1)."""
    return torch.linspace(-4, 4, n, dtype=torch.float64)[:, None]


def stairs(x: Tensor) -> Tensor:
    """A smooth staircase: increasing, and flat around -4, 0 and 4."""
    return x - 0.9 * (2 / math.pi) * torch.sin(math.pi * x / 2)


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {"stairs": stairs, "reflection": torch.neg}
"""What the networks are to learn, by name."""


def train(model: nn.Module, target: Callable[[Tensor], Tensor], iterations: int, label: str) -> float:
    """Fit `target` on 64 inputs by least squares, with Adam and a one-cycle learning rate.

    Returns:
        The root mean square of the residuals.
    """
    x = inputs(64).to(next(model.parameters()).device)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=iterations)
    for _ in tqdm(range(iterations), desc=label, unit="step"):
        optimizer.zero_grad()
        torch.autograd.backward((model(x) - target(x)).square().mean())
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return root_mean_square(model(x) - target(x))


def root_mean_square(x: Tensor) -> float:
    """Of all entries, in their unit."""
    return float(x.square().mean().sqrt())


def depth_run(*, network: str, target: str, iterations: int, device: str | torch.device) -> dict[str, bytes]:
    """`train` as a run of `reproduction.results`; its history is one row with the `error` at the end.

    Args:
        network: a name in `DEPTH_NETWORKS`.
        target: a name in `TARGETS`.
        iterations: of the training.
        device: where to train.
    """
    torch.manual_seed(0)
    model = DEPTH_NETWORKS[network]().to(device)
    error = train(model, TARGETS[target], iterations, f"{network}, {target}")
    return run_files(model, [{"error": error}])
