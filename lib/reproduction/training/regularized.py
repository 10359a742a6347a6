"""Training models with running costs (Finlay et al. 2020; Kelly et al. 2020)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.nn import ContinuousFlow, RegularizedFlow
from reproduction.data.batches import Minibatches
from reproduction.data.mnist import ShuffledBatches, load_mnist
from reproduction.data.points import points
from reproduction.measure.prediction import latent_ode_errors
from reproduction.measure.reversal import solved
from reproduction.models.regularized import Digits, Latent, flow, latent, penalty
from reproduction.training.adam import fit_with_adam
from reproduction.training.loop import Row, history_csv
from reproduction.training.mnist import classification_loss, error_rate
from reproduction.training.spirals import BASE, TEST, TRAIN, spirals_for

__all__ = ["digits_loss", "digits_run", "flow_run", "latent_run"]

TOLERANCES = (1e-3, 1e-5)
"""At which evaluations are counted."""

HELD_OUT = 10_000
"""Added to the seed of points that a flow is tested on."""

SHOWN = 60
"""Points whose paths are kept."""


def digits_run(
    *,
    weights: Mapping[str, float],
    seed: int,
    channels: int,
    train_size: int,
    test_size: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    data: Path,
    device: torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """Tell digits apart by a small ODE-Net.

    Args:
        weights: of the costs, by name; see `reproduction.models.regularized.penalty`.
        seed: of the initial weights and the order of the images, the same for all costs.
        channels: of the network.
        train_size, test_size: how many images of MNIST.
        training: `epochs`, `batch_size`, `lr`.
        solver: keyword arguments of `neural_ode.solve`.
        data: the folder of MNIST.
        device: where to train.
        checkpoints: a folder for the run's own.

    Returns:
        A row for each epoch: the `loss` of training with what is added to it, `test_error` (%), and evaluations of
        the test images, `nfe_0.001` and `nfe_1e-05`.
    """
    torch.manual_seed(seed)
    net = Digits(channels, weights, **solver).to(device)
    mnist = load_mnist(data)
    test = mnist.test.take(test_size)
    batches = ShuffledBatches(mnist.train.take(train_size), training["batch_size"], seed, device=device)
    images = test.images[:500].to(device, torch.float32) / 255

    def evaluate(net: Digits) -> Row:
        return {"test_error": error_rate(net, test), **_evaluations(net.block, lambda: net(images))}

    own = {"what": "digits", "weights": dict(weights), "seed": seed, "channels": channels, "train": train_size}
    whole = {**training, "steps": training["epochs"] * batches.steps_per_epoch}
    history = _fitted(net, digits_loss, batches, evaluate, whole, own, solver, checkpoints)
    return {".csv": history_csv(history).encode()}


def flow_run(
    *,
    weights: Mapping[str, float],
    seed: int,
    points_of: str,
    units: int,
    hidden: int,
    held_out: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    compiled: bool,
    device: torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """Make points likely under a continuous flow.

    Args:
        weights, seed, solver, device, checkpoints: see `digits_run`.
        points_of: a name in `reproduction.data.points.POINT_SETS`.
        units, hidden: see `reproduction.models.regularized.flow`.
        held_out: points that the likelihood is measured on.
        training: `epochs`, `steps` in all, `batch_size`, `lr`.
        compiled: whether to compile the solves, which changes no more than the time that they take.

    Returns:
        A row for each epoch: the `loss`, the `log_likelihood` of held-out points (nats), evaluations as in
        `digits_run`; and as JSON the `paths` of points from the data to the base distribution, at equal times.
    """
    torch.manual_seed(seed)
    net = flow(units, hidden, weights, **solver, compile=compiled).to(device)
    test = points(points_of, held_out, HELD_OUT + seed).to(device)
    batch_size = training["batch_size"]

    def loss(net: ContinuousFlow, x: Tensor) -> Tensor:
        value = -net.log_prob(x).mean()
        return value + penalty(net.costs, weights, net.dim) if isinstance(net, RegularizedFlow) else value

    def batch(step: int) -> Tensor:
        return points(points_of, batch_size, (seed, step)).to(device)

    def evaluate(net: ContinuousFlow) -> Row:
        likelihood = net.log_prob(test).mean().item()
        return {"log_likelihood": likelihood, **_evaluations(net, lambda: net.log_prob(test[:500]))}

    own = {"what": "flow", "weights": dict(weights), "seed": seed, "points": points_of, "units": units}
    own |= {"hidden": hidden, "held_out": held_out}
    history = _fitted(net, loss, batch, evaluate, training, own, solver, checkpoints)
    times = torch.linspace(net.span[1], net.span[0], 11)
    with torch.no_grad():
        paths = net.transport(test[:SHOWN], times).z.cpu()
    rounded = [[[round(x, 3) for x in point] for point in at] for at in paths.tolist()]
    return {
        ".csv": history_csv(history).encode(),
        ".json": (json.dumps({"paths": rounded}, indent=1) + "\n").encode(),
    }


def latent_run(
    *,
    weights: Mapping[str, float],
    seed: int,
    series: int,
    test_series: int,
    observations: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """Fit a latent ODE to spirals.

    Args:
        weights, seed, solver, device, checkpoints: see `digits_run`.
        series, test_series: how many spirals.
        observations: of each.
        training: `epochs`, `steps` in all, `batch_size`, `lr`.

    Returns:
        A row for each epoch: the `loss` for each observation, RMSE of test series `inside` and `beyond` the window,
        and evaluations as in `digits_run`, of the paths of test series up to the end of the window.
    """
    torch.manual_seed(seed)
    net = latent(BASE.noise, weights, **solver).to(device)
    train = spirals_for(BASE, series, observations, seed, TRAIN).to(device)
    test = spirals_for(BASE, test_series, observations, seed, TEST).to(device)
    order = Minibatches(series, training["batch_size"], seed)

    def loss(net: Latent, rows: Tensor) -> Tensor:
        value = -net.elbo(train.values[rows], train.times[rows]).mean() / observations
        return value + penalty(net.costs, weights, 4) if weights else value

    def evaluate(net: Latent) -> Row:
        start, _ = net.recognition(test.times, test.values)
        window = test.grid[: test.window]
        found = latent_ode_errors(net, test)
        errors = {name: found[name] for name in ("inside", "beyond")}
        return {**errors, **_evaluations(net, lambda: net.trajectory(start, window))}

    own = {"what": "latent ODE", "weights": dict(weights), "seed": seed, "series": series}
    own |= {"test_series": test_series, "observations": observations}
    history = _fitted(net, loss, order, evaluate, training, own, solver, checkpoints)
    return {".csv": history_csv(history).encode()}


def digits_loss(net: Digits, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy, in nats, and what is added to it."""
    return classification_loss(net, batch) + net.penalty()


def _evaluations(solving: Any, work: Callable[[], object]) -> Row:
    """Evaluations of a piece of work by something that solves, at each of `TOLERANCES`."""
    found = {}
    for tolerance in TOLERANCES:
        with solved(solving, rtol=tolerance, atol=tolerance):
            work()
            found[f"nfe_{tolerance:g}"] = solving.stats.nfe
    return found


def _fitted(
    net: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batch: Callable[[int], Any],
    evaluate: Callable[[Any], Row],
    training: Mapping[str, Any],
    own: Mapping[str, Any],
    solver: Mapping[str, Any],
    checkpoints: Path,
) -> list[Row]:
    """The history of a training with Adam, a row for each epoch."""
    chosen = "+".join(own["weights"]) or "none"
    name = f"{own['what']}, {chosen}, seed {own['seed']}"
    return fit_with_adam(
        *(net, loss, batch, evaluate, training, {**own, "solver": dict(solver)}),
        code=Path(__file__),
        label=name,
        checkpoint=checkpoints / f"{name.replace(', ', '-').replace(' ', '-')}.pt",
        evaluations=training["epochs"],
    )
