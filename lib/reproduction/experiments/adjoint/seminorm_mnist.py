"""The same counts for the ODE-Net of notebook 04."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from neural_ode.solution import State
from reproduction.data.mnist import Split, load_splits
from reproduction.experiments.adjoint.seminorm import seminorm_counts
from reproduction.experiments.ode_net import SPAN, as_floats, block_of, load_ode_net
from reproduction.experiments.trials import Trial
from reproduction.models.mnist import MnistNet, mnist_net
from reproduction.results import csv_bytes

__all__ = ["ode_net_trial", "seminorm_mnist_run"]

IMAGES = 2
"""Their features are 4608 numbers; the dynamics have 75 thousand parameters."""


def ode_net_trial(model: MnistNet, split: Split) -> Trial:
    """The ODE block of a network on the features of images, with the cross-entropy of the answers as its loss.

    Args:
        model: is made one of float64.
        split: the images.
    """
    model = model.double().requires_grad_(False)
    block = block_of(model)
    block.f.requires_grad_()
    features = model.stem(as_floats(split.images, model))
    labels = split.labels.to(features.device)

    def loss(state: State) -> Tensor:
        assert isinstance(state, Tensor)
        return F.cross_entropy(model.head(state), labels)

    start, end = SPAN
    return Trial(block.f, features, end, start, loss)


def seminorm_mnist_run(
    *,
    weights: str | None,
    tolerances: Sequence[float],
    scales: Sequence[float],
    files: Mapping[str, Path],
    data: Path,
    device: torch.device,
) -> dict[str, bytes]:
    """`seminorm_counts` of the ODE-Net on test images as a run of `reproduction.results`.

    Args:
        weights: checksum of the file that has them; random ones for `None`.
        tolerances, scales: see `seminorm_counts`.
        files: weights by checksum.
        data: the folder of MNIST.
        device: where to solve.
    """
    torch.manual_seed(0)
    model = mnist_net("ODE-Net").to(device) if weights is None else load_ode_net(files[weights], device)
    assert isinstance(model, MnistNet)
    test = load_splits(data, [None, None, IMAGES]).test
    return {".csv": csv_bytes(seminorm_counts(ode_net_trial(model, test), tolerances, scales))}
