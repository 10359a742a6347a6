"""Figure 3d with the paper's kind of solver: an ODE-Net that is trained with a multistep method of SciPy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from neural_ode.methods import ScipySolver
from reproduction.data.mnist import load_splits
from reproduction.training.loop import history_csv
from reproduction.training.mnist import train_classifier

__all__ = ["multistep_run"]


def multistep_run(
    *,
    seed: int,
    multistep: str,
    tolerance: float,
    training: Mapping[str, Any],
    train_size: int | None,
    validation_size: int | None,
    data: Path,
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """The history of a training, as a run of `reproduction.results`. The weights are not kept.

    Args:
        seed, training, device: see `reproduction.training.mnist.classifier_task`.
        multistep: a solver of `neural_ode.ScipySolver`, for the network and its adjoint.
        tolerance: relative and absolute, of both.
        train_size, validation_size: how many examples of these splits, all for `None`.
        data: the folder of MNIST.
        checkpoints: a folder for the run's own.
    """
    splits = load_splits(data, [train_size, validation_size, None])
    solver = {"method": ScipySolver(multistep), "rtol": tolerance, "atol": tolerance}
    file = checkpoints / f"ODE-Net-{multistep}-{seed}.pt"
    _, history = train_classifier("ODE-Net", seed, splits, training, solver, device, file)
    return {".csv": history_csv(history).encode()}
