"""What the network answers when it is solved in other ways than it was trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reproduction.data.mnist import Split, load_splits
from reproduction.experiments.ode_net import block_of, load_ode_net
from reproduction.models.mnist import MnistNet
from reproduction.results import csv_bytes
from reproduction.training.mnist import error_rate

__all__ = ["ERROR", "error_run", "error_solved"]

ERROR = "test error (%)"
"""The column."""


def error_solved(model: MnistNet, split: Split, how: Mapping[str, Any]) -> float:
    """Percentage of wrong answers of a trained network, solved in another way than it was trained.

    Args:
        model: with an ODE block.
        split: the examples.
        how: keyword arguments of `neural_ode.solve`.
    """
    block, before = block_of(model), block_of(model).how
    try:
        block.how = dict(how)
        return error_rate(model, split)
    finally:
        block.how = before


def error_run(
    *,
    weights: str,
    solver: Mapping[str, Any],
    test_size: int | None,
    files: Mapping[str, Path],
    data: Path,
    device: torch.device,
) -> dict[str, bytes]:
    """`error_solved` on test images as a run of `reproduction.results`.

    Args:
        weights: checksum of the file that has the network's.
        solver: keyword arguments of `neural_ode.solve`.
        test_size: how many images, all for `None`.
        files: weights by checksum.
        data: the folder of MNIST.
        device: where to solve.
    """
    test = load_splits(data, [None, None, test_size]).test
    error = error_solved(load_ode_net(files[weights], device), test, solver)
    return {".csv": csv_bytes([{ERROR: error}])}
