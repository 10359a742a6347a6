"""Whether the evaluation adapts to each input: images that are solved with steps of their own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from neural_ode import solve
from reproduction.data.mnist import Split, load_splits
from reproduction.experiments.ode_net import SPAN, as_floats, block_of, end_of, load_ode_net
from reproduction.models.mnist import MnistNet
from reproduction.progress import tqdm
from reproduction.results import csv_bytes

__all__ = ["Digits", "digits_run", "per_digit", "times_of_their_own"]


def times_of_their_own(f: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Dynamics that get a time for each row, shape (n,), from dynamics that get one for all, shape ()."""

    def one(t: Tensor, z: Tensor) -> Tensor:
        out: Tensor = f(t, z[None])[0]
        return out

    return torch.vmap(one)


class Digits(NamedTuple):
    """What every image cost with steps of its own, and what came of it; arrays of shape (n,).

    Attributes:
        nfe: evaluations.
        loss: cross-entropy in nats.
        wrong: whether the answer is.
    """

    nfe: NDArray[np.int64]
    loss: NDArray[np.float64]
    wrong: NDArray[np.bool_]


@torch.no_grad()
def per_digit(model: MnistNet, split: Split, tolerance: float, method: str, batch_size: int = 250) -> Digits:
    """Solve every image with error control and steps of its own."""
    block = block_of(model)
    f = times_of_their_own(block.f)
    parts = []
    pairs = zip(torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True)
    for images, labels in tqdm(pairs, total=-(-len(split.labels) // batch_size), desc="digits", unit="batch"):
        state = model.stem(as_floats(images, model))
        solution = solve(f, state, SPAN, method=method, rtol=tolerance, atol=tolerance, batched=True)
        logits = model.head(end_of(solution.y))
        labels = labels.to(logits.device)
        assert solution.stats.per_sample is not None
        loss = F.cross_entropy(logits, labels, reduction="none")
        parts.append((solution.stats.per_sample.nfe, loss.double(), logits.argmax(1) != labels))
    columns = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return Digits(*columns)


def digits_run(
    *,
    weights: str,
    tolerance: float,
    method: str,
    test_size: int | None,
    files: Mapping[str, Path],
    data: Path,
    device: torch.device,
) -> dict[str, bytes]:
    """`per_digit` of test images as a run of `reproduction.results`: a row for each.

    Args:
        weights: checksum of the file that has the network's.
        tolerance, method: of the solves.
        test_size: how many images, all for `None`.
        files: weights by checksum.
        data: the folder of MNIST.
        device: where to solve.
    """
    test = load_splits(data, [None, None, test_size]).test
    found = per_digit(load_ode_net(files[weights], device), test, tolerance, method)
    columns = (column.tolist() for column in found)
    return {".csv": csv_bytes([dict(zip(Digits._fields, row, strict=True)) for row in zip(*columns, strict=True)])}
