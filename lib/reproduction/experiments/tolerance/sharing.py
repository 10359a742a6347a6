"""What it costs that a batch shares its steps (section 6)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_ode import solve
from reproduction.data.mnist import Split, load_splits
from reproduction.experiments.ode_net import SPAN, as_floats, block_of, load_ode_net
from reproduction.models.mnist import MnistNet
from reproduction.progress import tqdm
from reproduction.results import Run, csv_bytes

__all__ = ["sharing", "sharing_run"]


@torch.no_grad()
def sharing(
    model: MnistNet,
    split: Split,
    nfe: NDArray[np.int64],
    sizes: Sequence[int],
    batches: int,
    tolerance: float,
    method: str,
) -> list[dict[str, float]]:
    """Evaluations of joint solves, over the mean of the same images solved one by one (section 6 of the paper).

    Joint steps are controlled in two ways: by the root mean square over the whole batch, as the paper's code and
    torchdiffeq do, which lets single images miss the tolerance; and by the worst image.

    Args:
        model: with an ODE block.
        split: the images.
        nfe: evaluations of each of them with steps of its own, shape (n,).
        sizes: of the batches.
        batches: how many of each size, fewer if there are not so many images.
        tolerance, method: of the solves, as they were of the separate ones.

    Returns:
        A row for each batch: `size`, `shared` and `worst`, the two ratios.
    """
    f = block_of(model).f

    def worst(x: Tensor) -> Tensor:
        return x.flatten(1).square().mean(1).sqrt().amax()

    rows = []
    for size in tqdm(sizes, desc="joint solves", unit="size"):
        for number in range(min(batches, len(split.labels) // size)):
            chosen = slice(number * size, (number + 1) * size)
            state = model.stem(as_floats(split.images[chosen], model))
            alone = nfe[chosen].mean()
            how: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance}
            shared = solve(f, state, SPAN, **how).stats.nfe
            by_worst = solve(f, state, SPAN, norm=worst, **how).stats.nfe
            rows.append({"size": size, "shared": float(shared / alone), "worst": float(by_worst / alone)})
    return rows


def sharing_run(
    *,
    weights: str,
    digits: str,
    sizes: Sequence[int],
    batches: int,
    tolerance: float,
    method: str,
    test_size: int | None,
    separate: Run,
    files: Mapping[str, Path],
    data: Path,
    device: torch.device,
) -> dict[str, bytes]:
    """`sharing` on test images as a run of `reproduction.results`.

    Args:
        weights: checksum of the file that has the network's.
        digits: checksum of the table of `separate`.
        sizes, batches, tolerance, method: see `sharing`.
        test_size: how many images, all for `None`.
        separate: the same images with steps of their own: the run of `digits_run`.
        files: weights by checksum.
        data: the folder of MNIST.
        device: where to solve.
    """
    test = load_splits(data, [None, None, test_size]).test
    model = load_ode_net(files[weights], device)
    return {
        ".csv": csv_bytes(
            sharing(model, test, separate.table()["nfe"].to_numpy(), sizes, batches, tolerance, method)
        )
    }
