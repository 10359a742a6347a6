"""Training the same networks with each way to differentiate the solve: a classifier, a flow, stiff dynamics."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.gradients import Backsolve, Gradient, RecursiveCheckpoint
from neural_ode.nn import ContinuousFlow
from reproduction.data.mnist import ShuffledBatches, load_mnist
from reproduction.data.points import points
from reproduction.measure.reversal import solved
from reproduction.models.attracted import Attracted, Curve, Paths, curve
from reproduction.models.dense_digits import DenseDigits
from reproduction.models.regularized import flow
from reproduction.training.loop import Row, history_csv
from reproduction.training.mnist import classification_loss, error_rate
from reproduction.training.side_by_side import fit_side_by_side

__all__ = ["WAYS", "curve_run", "digits_run", "flow_run"]

WAYS: dict[str, str | Gradient] = {
    "direct": "direct",
    "recursive_checkpoint": "recursive_checkpoint",
    "recursive_checkpoint, log n": RecursiveCheckpoint(checkpoints="log"),
    "backsolve": "backsolve",
    "backsolve, 4 checkpoints": Backsolve(checkpoints=4),
    "backsolve, seminorm": Backsolve(norm="seminorm"),
    "interpolating": "interpolating",
    "reversible": "reversible",
}
"""Arguments of `neural_ode.solve` by name."""

HELD_OUT = 10_000
"""Added to the seed of the data that models are tested on."""

OBSERVED, BETWEEN = 8, 16
"""How often trajectories are seen up to t = 2: to train, and to test, when every second time is in between."""


def digits_run(
    *,
    ways: Sequence[str],
    seed: int,
    dimensions: int,
    hidden: int,
    train_size: int,
    test_size: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    data: Path,
    device: torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """Tell digits apart by a small ODE network.

    Args:
        ways: names in `WAYS`; all begin with the same weights and see the same images.
        seed: of the initial weights and the order of the images.
        dimensions, hidden: see `reproduction.models.dense_digits.DenseDigits`.
        train_size, test_size: how many images of MNIST.
        training: `epochs`, `batch_size`, `lr`.
        solver: keyword arguments of `neural_ode.solve`.
        data: the folder of MNIST.
        device: where to train.
        checkpoints: a folder for the run's own.

    Returns:
        The rows of `fit_side_by_side`, with the `test_error` (%).
    """
    mnist = load_mnist(data)
    test = mnist.test.take(test_size)
    batches = ShuffledBatches(mnist.train.take(train_size), training["batch_size"], seed, device=device)

    def build(gradient: str | Gradient) -> nn.Module:
        return DenseDigits(dimensions, hidden, **solver, gradient=gradient)

    def evaluate(net: DenseDigits) -> Row:
        return _tested(net.block, lambda: {"test_error": error_rate(net, test)})

    own = {"task": "digits", "seed": seed, "dimensions": dimensions, "hidden": hidden, "train": train_size}
    own |= {"test": test_size, "solver": dict(solver)}
    whole = {**training, "steps": training["epochs"] * batches.steps_per_epoch}
    models = _models(ways, seed, device, build)
    return _trained(models, classification_loss, batches, evaluate, whole, own, checkpoints)


def flow_run(
    *,
    ways: Sequence[str],
    seed: int,
    points_of: str,
    units: int,
    hidden: int,
    held_out: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """Make points likely under a continuous flow.

    Args:
        ways, seed, solver, device, checkpoints: see `digits_run`.
        points_of: a name in `reproduction.data.points.POINT_SETS`.
        units, hidden: see `reproduction.models.regularized.flow`.
        held_out: points that the likelihood is measured on.
        training: `epochs`, `steps` in all, `batch_size`, `lr`.

    Returns:
        The rows of `fit_side_by_side`, with the `log_likelihood` of held-out points (nats).
    """
    test = points(points_of, held_out, HELD_OUT + seed).to(device)
    batch_size = training["batch_size"]

    def build(gradient: str | Gradient) -> nn.Module:
        return flow(units, hidden, {}, **solver, gradient=gradient)

    def loss(net: ContinuousFlow, x: Tensor) -> Tensor:
        return -net.log_prob(x).mean()

    def batch(step: int) -> Tensor:
        return points(points_of, batch_size, (seed, step)).to(device)

    def evaluate(net: ContinuousFlow) -> Row:
        return _tested(net, lambda: {"log_likelihood": net.log_prob(test).mean().item()})

    own = {"task": "flow", "seed": seed, "points": points_of, "units": units, "hidden": hidden}
    own |= {"held_out": held_out, "solver": dict(solver)}
    models = _models(ways, seed, device, build)
    return _trained(models, loss, batch, evaluate, training, own, checkpoints)


def curve_run(
    *,
    ways: Sequence[str],
    seed: int,
    rate: float,
    hidden: int,
    starts: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """Learn the curve that trajectories are drawn to; see `reproduction.models.attracted`.

    They are seen at eight times up to 2, so that the stiffness is about twice the rate. From each time to the one
    before, what separates two states grows by `exp(k g² / 4)`.

    Args:
        ways, seed, solver, device, checkpoints: see `digits_run`; the seed is also that of the starting points.
        rate: at which they are drawn to it, which is known.
        hidden: units of the network.
        starts: trajectories to train on, and to test on.
        training: `epochs`, `steps` in all, `lr`; every step sees all trajectories.

    Returns:
        The rows of `fit_side_by_side`, with the `test_error`: root mean square over other trajectories, at twice as
        many times.
    """
    train = _observed(rate, starts, OBSERVED, seed).to(device)
    test = _observed(rate, starts, BETWEEN, HELD_OUT + seed).to(device)

    def build(gradient: str | Gradient) -> nn.Module:
        return Paths(Attracted(Curve(hidden), rate), _times(OBSERVED), **solver, gradient=gradient)

    def loss(net: Paths, observed: Tensor) -> Tensor:
        squares: Tensor = (net(observed[0]) - observed)[1:].square()
        return squares.mean()

    def evaluate(net: Paths) -> Row:
        seen_between = Paths(net.f, _times(BETWEEN), **net.how)
        return _tested(seen_between, lambda: {"test_error": loss(seen_between, test).sqrt().item()})

    own = {"task": f"curve-{rate:g}", "seed": seed, "rate": rate, "hidden": hidden, "starts": starts}
    own |= {"times": [OBSERVED, BETWEEN], "solver": dict(solver)}
    models = _models(ways, seed, device, build)
    return _trained(models, loss, lambda step: train, evaluate, training, own, checkpoints)


def _times(number: int) -> list[float]:
    """Zero, and so many times up to 2."""
    return [2 * i / number for i in range(number + 1)]


def _observed(rate: float, starts: int, number: int, seed: int) -> Tensor:
    """Trajectories from random points between 0.5 and 2, shape (number + 1, starts)."""
    random = torch.Generator().manual_seed(seed)
    y0 = 0.5 + 1.5 * torch.rand(starts, generator=random, dtype=torch.float64)
    found = solve(Attracted(curve, rate), y0, _times(number), method="kvaerno5", rtol=1e-9, atol=1e-9).y
    assert isinstance(found, Tensor)
    return found


def _models(
    ways: Sequence[str], seed: int, device: torch.device, build: Callable[[str | Gradient], nn.Module]
) -> dict[str, nn.Module]:
    """A model for each way, all with the same weights."""
    models = {}
    for way in ways:
        torch.manual_seed(seed)
        models[way] = build(WAYS[way]).to(device)
    return models


def _tested(solving: Any, test: Callable[[], Row]) -> Row:
    """The numbers of a test; all models are solved alike in it, while `reversible` takes steps of its own."""
    with solved(solving, gradient="direct"):
        return test()


def _trained(
    models: Mapping[str, nn.Module],
    loss: Callable[[Any, Any], Tensor],
    batch: Callable[[int], Any],
    evaluate: Callable[[Any], Row],
    training: Mapping[str, Any],
    own: Mapping[str, Any],
    checkpoints: Path,
) -> dict[str, bytes]:
    name = f"{own['task']}-{own['seed']}"
    rows = fit_side_by_side(
        *(models, loss, batch, evaluate, training, own),
        code=Path(__file__),
        label=name,
        checkpoint=checkpoints / f"{name}.pt",
    )
    columns: dict[str, Any] = dict.fromkeys(key for row in rows for key in row)
    return {".csv": history_csv([{**columns, **row} for row in rows]).encode()}
