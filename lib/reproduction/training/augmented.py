"""Training ODE networks with and without further dimensions (Dupont et al. 2019)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reproduction.data.annuli import annuli
from reproduction.data.batches import Minibatches
from reproduction.data.mnist import ShuffledBatches, load_mnist
from reproduction.models.augmented import Augmented, on_pixels, on_points
from reproduction.training.adam import fit_with_adam
from reproduction.training.loop import Row, history_csv
from reproduction.training.mnist import classification_loss, error_rate
from reproduction.training.weights import run_files

__all__ = ["held_out", "pixels_run", "points_run"]

TEST = 10_000
"""Added to the seed of the test points."""


def points_run(
    *,
    extra: int,
    seed: int,
    points: int,
    hidden: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """Tell the disc from the ring by least squares.

    Args:
        extra: dimensions.
        seed: of the weights and the data, which are the same for all `extra`.
        points: to train on, and to test on.
        hidden: units of the dynamics.
        training: `epochs`, `batch_size`, `lr`.
        solver: keyword arguments of `neural_ode.solve`.
        device: where to train.
        checkpoints: a folder for the run's own.

    Returns:
        Files of a run: the weights, and a row for each epoch, with the `loss` of training, `test_loss` (mean
        square), `wrong` (share of test points on the wrong side) and evaluations of the solves in training.
    """
    torch.manual_seed(seed)
    model = on_points(extra, hidden, **solver).to(device)
    x, classes = (part.to(device) for part in annuli(points, seed))
    test, expected = (part.to(device) for part in held_out(points, seed))
    order = Minibatches(points, training["batch_size"], seed)

    def loss(net: Augmented, batch: Tensor) -> Tensor:
        squares: Tensor = (net(x[batch])[:, 0] - classes[batch]).square()
        return squares.mean()

    def evaluate(net: Augmented) -> Row:
        found = net(test)[:, 0]
        return {
            "test_loss": (found - expected).square().mean().item(),
            "wrong": (found * expected <= 0).double().mean().item(),
        }

    own = {"task": "points", "extra": extra, "seed": seed, "points": points, "hidden": hidden}
    history = _fitted(
        model, loss, order, evaluate, training, own, solver, checkpoints / f"points-{extra}-{seed}.pt"
    )
    return run_files(model, history)


def held_out(points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points that the network of a seed is tested on, and their classes; see `annuli`."""
    return annuli(points, TEST + seed)


def pixels_run(
    *,
    extra: int,
    seed: int,
    filters: int,
    train_size: int,
    test_size: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    data: Path,
    device: torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """Tell digits apart, from raw pixels.

    Args:
        extra: channels.
        seed: of the weights and the order of the images.
        filters: of the dynamics.
        train_size, test_size: how many images of MNIST.
        training, solver, device, checkpoints: see `points_run`.
        data: the folder of MNIST.

    Returns:
        Files of a run: a row for each epoch, with the `loss` of training, `test_error` (%), and evaluations of the
        solves in training.
    """
    torch.manual_seed(seed)
    model = on_pixels(extra, filters, **solver).to(device)
    mnist = load_mnist(data)
    test = mnist.test.take(test_size)
    batches = ShuffledBatches(mnist.train.take(train_size), training["batch_size"], seed, device=device)

    def evaluate(net: Augmented) -> Row:
        return {"test_error": error_rate(net, test)}

    own = {"task": "pixels", "extra": extra, "seed": seed, "filters": filters}
    own |= {"train": train_size, "test": test_size}
    checkpoint = checkpoints / f"pixels-{extra}-{seed}.pt"
    history = _fitted(model, classification_loss, batches, evaluate, training, own, solver, checkpoint)
    return {".csv": history_csv(history).encode()}


def _fitted(
    model: Augmented,
    loss: Any,
    batches: Minibatches | ShuffledBatches,
    evaluate: Any,
    training: Mapping[str, Any],
    own: Mapping[str, Any],
    solver: Mapping[str, Any],
    checkpoint: Path,
) -> list[Row]:
    """The history of a training with Adam, a row for each epoch."""
    steps = training["epochs"] * batches.steps_per_epoch
    settings = {**own, "solver": dict(solver)}
    return fit_with_adam(
        *(model, loss, batches, evaluate, {**training, "steps": steps}, settings),
        code=Path(__file__),
        label=f"{own['task']}, {own['extra']} extra, seed {own['seed']}",
        checkpoint=checkpoint,
        evaluations=training["epochs"],
    )
