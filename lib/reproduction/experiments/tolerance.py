"""What tolerance buys and costs on a trained ODE network (Figure 3 of Chen et al. 2018, and its later critics)."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from neural_ode import rms_norm, solve
from neural_ode.errors import InvalidArgumentError, MaxStepsError, needs
from neural_ode.gradients import Backsolve
from neural_ode.methods import BlackBox, ScipySolver
from neural_ode.nn import OdeBlock
from neural_ode.solution import Statistics
from reproduction.data.mnist import Split
from reproduction.measure.timing import seconds_of
from reproduction.models.mnist import MnistNet
from reproduction.training.mnist import error_rate

with needs("notebooks"):
    from tqdm import tqdm

__all__ = [
    "SOLVERS",
    "Digits",
    "Forward",
    "Path",
    "Scaled",
    "as_floats",
    "backward_scales",
    "error_rates",
    "evaluations_at",
    "forward_sweep",
    "path_of",
    "per_digit",
    "sharing",
    "times_of_their_own",
]

SOLVERS: dict[str, str | BlackBox] = {
    "dopri5": "dopri5",
    "tsit5": "tsit5",
    "dopri8": "dopri8",
    "adams": "adams",
    "VODE": ScipySolver("vode-adams"),
}
"""Explicit Runge-Kutta methods of three kinds, the library's Adams method, and the implicit Adams of the paper."""

SPAN = (0.0, 1.0)
BACKWARD_STEPS = 500
"""Backward solves of high order crawl over the kinks of the network: after so many steps they are given up."""


class Forward(NamedTuple):
    """One solve of a batch, and its backward solves.

    Attributes:
        solver: a name in `SOLVERS`.
        batch: which batch.
        tolerance: relative and absolute.
        error: of the state at the end, relative to a far tighter solve (root mean square).
        seconds: of the forward solve, the median of some.
        nfe: evaluations of the forward solve.
        backward_nfe: of the backward solve, with the parameters' gradients in the error norm, as in the paper.
            `None` for all but the first batch, and where the solve did not end within the allowed steps.
        seminorm_nfe: without them. `None` also for a solver whose norm cannot be chosen.
    """

    solver: str
    batch: int
    tolerance: float
    error: float
    seconds: float
    nfe: int
    backward_nfe: int | None
    seminorm_nfe: int | None


def as_floats(images: Tensor, like: nn.Module) -> Tensor:
    """Images of uint8 as numbers in [0, 1], of the dtype and on the device of the parameters of `like`."""
    return images.to(next(like.parameters())) / 255


def forward_sweep(
    model: MnistNet,
    batches: Sequence[Split],
    tolerances: Sequence[float],
    repeats: int,
    solvers: Mapping[str, str | BlackBox] = SOLVERS,
) -> list[Forward]:
    """Solve the ODE block of a trained network with every solver at every tolerance, forwards and backwards.

    Float64 shows errors down to the tightest tolerance. The loss of the backward solve is the one of training, the
    mean cross-entropy of the batch. One solver solves both ways.

    Args:
        model: in float64, with an ODE block.
        batches: times and backward solves are those of the first one; the others add errors and counts.
        tolerances: relative and absolute.
        repeats: how often a solve of the first batch is timed.
        solvers: by name.
    """
    block = _block(model)
    tight = min(tolerances) / 100
    states, exact = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(model.stem(as_floats(batch.images, model)))
            # Where f has kinks (ReLU), steps of high order gain nothing, and this method needs fewest evaluations.
            exact.append(_end(solve(block.f, states[-1], SPAN, method="adams", rtol=tight, atol=tight).y))
    rows = []
    cases = list(itertools.product(range(len(batches)), tolerances, solvers))
    for number, tolerance, name in tqdm(cases, desc="tolerances", unit="solve"):
        how: dict[str, Any] = {"method": solvers[name], "rtol": tolerance, "atol": tolerance}
        forward = partial(solve, block.f, states[number], SPAN, **how)
        with torch.no_grad():
            solution = forward()
            seconds = [seconds_of(forward, states[number].device) for _ in range(repeats if number == 0 else 1)]
        error = rms_norm(_end(solution.y) - exact[number]) / rms_norm(exact[number])
        counts: list[int | None] = [None, None]
        if number == 0:
            for k, norm in enumerate((None, "seminorm")):
                if norm is None or not isinstance(solvers[name], BlackBox):
                    gradient = Backsolve(norm=norm, options={"max_steps": BACKWARD_STEPS})
                    with suppress(MaxStepsError):
                        labels = batches[number].labels
                        counts[k] = _backward_evaluations(model, states[number], labels, gradient, how)
        nfe = solution.stats.nfe
        rows.append(Forward(name, number, tolerance, float(error), median(seconds), nfe, *counts))
    return rows


def _block(model: MnistNet) -> OdeBlock:
    if not isinstance(model.body, OdeBlock):
        raise InvalidArgumentError(f"the network needs an ODE block, got {type(model.body).__name__}")
    return model.body


def _end(y: Any) -> Tensor:
    assert isinstance(y, Tensor)
    return y[-1]


def _backward_evaluations(
    model: MnistNet, state: Tensor, labels: Tensor, gradient: Backsolve, how: Mapping[str, Any], scale: float = 1.0
) -> int:
    """Evaluations of the backward solve for `scale` times the mean cross-entropy."""
    solution = solve(_block(model).f, state.detach().requires_grad_(), SPAN, gradient=gradient, **how)
    loss = scale * F.cross_entropy(model.head(_end(solution.y)), labels.to(state.device))
    torch.autograd.backward(loss)
    model.zero_grad()
    assert solution.stats.backward is not None
    return solution.stats.backward.nfe


class Scaled(NamedTuple):
    """Evaluations of a backward solve for a loss times `scale`, over those of the forward solve."""

    solver: str
    scale: float
    ratio: float


def backward_scales(
    model: MnistNet,
    batch: Split,
    scales: Sequence[float],
    tolerance: float,
    solvers: Mapping[str, str | BlackBox] = SOLVERS,
) -> list[Scaled]:
    """How the cost of the backward solve depends on the size of the loss.

    Error control compares the adjoint with an *absolute* tolerance. A loss that is ten times larger has the same
    minimum and ten times the adjoint, so it takes more evaluations: the ratio of backward to forward evaluations is
    no property of a solver alone.
    """
    block = _block(model)
    with torch.no_grad():
        state = model.stem(as_floats(batch.images, model))
    rows = []
    for name in solvers:
        how: dict[str, Any] = {"method": solvers[name], "rtol": tolerance, "atol": tolerance}
        with torch.no_grad():
            nfe = solve(block.f, state, SPAN, **how).stats.nfe
        rows += [
            Scaled(name, scale, _backward_evaluations(model, state, batch.labels, Backsolve(), how, scale) / nfe)
            for scale in scales
        ]
    return rows


def evaluations_at(rows: Sequence[Forward], error: float) -> float | None:
    """Evaluations that bring the error down to `error`, between the points of a work-precision curve.

    Interpolates the logarithm of the evaluations linearly in the logarithm of the error.

    Args:
        rows: solves of one batch with one solver.
        error: to be reached.

    Returns:
        `None` where the rows do not reach from above to below that error.
    """
    points = sorted((row.error, row.nfe) for row in rows)
    for (e0, n0), (e1, n1) in itertools.pairwise(points):
        if e0 <= error <= e1 and e0 < e1:
            share = (np.log(error) - np.log(e0)) / (np.log(e1) - np.log(e0))
            return float(np.exp(np.log(n0) + share * (np.log(n1) - np.log(n0))))
    return None


def error_rates(model: MnistNet, split: Split, solvers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Percentage of wrong answers of a trained network, solved in other ways than it was trained.

    Args:
        model: with an ODE block.
        split: the examples.
        solvers: keyword arguments of `neural_ode.solve`, by name.
    """
    block, before = _block(model), _block(model).how
    errors = {}
    try:
        for name, how in tqdm(solvers.items(), desc="test errors", unit="solver"):
            block.how = dict(how)
            errors[name] = error_rate(model, split)
    finally:
        block.how = before
    return errors


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
    block = _block(model)
    f = times_of_their_own(block.f)
    parts = []
    pairs = zip(torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True)
    for images, labels in tqdm(pairs, total=-(-len(split.labels) // batch_size), desc="digits", unit="batch"):
        state = model.stem(as_floats(images, model))
        solution = solve(f, state, SPAN, method=method, rtol=tolerance, atol=tolerance, batched=True)
        logits = model.head(_end(solution.y))
        labels = labels.to(logits.device)
        assert solution.stats.per_sample is not None
        loss = F.cross_entropy(logits, labels, reduction="none")
        parts.append((solution.stats.per_sample.nfe, loss.double(), logits.argmax(1) != labels))
    columns = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return Digits(*columns)


class Path(NamedTuple):
    """The features of one image on their way through the ODE block.

    Attributes:
        t, z: times, shape (n,), and features, shape (n, features), of a tight solve.
        nodes, at_nodes: the ends of the steps that the solver took, and where it was then; shapes as above.
        stats: what that solve cost.
        error: of the features at the end, relative to the tight solve.
    """

    t: NDArray[np.float64]
    z: NDArray[np.float64]
    nodes: NDArray[np.float64]
    at_nodes: NDArray[np.float64]
    stats: Statistics
    error: float


@torch.no_grad()
def path_of(model: MnistNet, image: Tensor, method: str, tolerance: float, points: int = 100) -> Path:
    """Where a solver steps on the way of one image, beside the way itself.

    Args:
        model: in float64, with an ODE block.
        image: uint8, shape (1, 28, 28).
        method: with error control and dense output.
        tolerance: relative and absolute.
        points: of the tight solve.
    """
    f, state = _block(model).f, model.stem(as_floats(image[None], model))
    times = torch.linspace(*SPAN, points, dtype=torch.float64)
    exact = solve(f, state, times, method="adams", rtol=1e-7, atol=1e-7).y
    solution = solve(f, state, SPAN, method=method, rtol=tolerance, atol=tolerance, dense=True)
    nodes = torch.tensor([0.0, *solution.stats.step_sizes], dtype=torch.float64).cumsum(0).clamp(max=SPAN[1])
    assert isinstance(exact, Tensor)
    at_nodes = solution.dense(nodes)
    assert isinstance(at_nodes, Tensor)
    error = rms_norm(_end(solution.y) - exact[-1]) / rms_norm(exact[-1])
    t, z, ends, at_ends = (x.cpu().numpy() for x in (times, exact.flatten(1), nodes, at_nodes.flatten(1)))
    return Path(t, z, ends, at_ends, solution.stats, float(error))


@torch.no_grad()
def sharing(
    model: MnistNet, split: Split, digits: Digits, sizes: Sequence[int], batches: int, tolerance: float, method: str
) -> list[dict[str, float]]:
    """Evaluations of joint solves, over the mean of the same images solved one by one (section 6 of the paper).

    Joint steps are controlled in two ways: by the root mean square over the whole batch, as the paper's code and
    torchdiffeq do, which lets single images miss the tolerance; and by the worst image.

    Returns:
        A row for each batch: `size`, `shared` and `worst`, the two ratios.
    """
    f = _block(model).f

    def worst(x: Tensor) -> Tensor:
        return x.flatten(1).square().mean(1).sqrt().amax()

    rows = []
    for size in tqdm(sizes, desc="joint solves", unit="size"):
        for number in range(min(batches, len(split.labels) // size)):
            chosen = slice(number * size, (number + 1) * size)
            state = model.stem(as_floats(split.images[chosen], model))
            alone = digits.nfe[chosen].mean()
            how: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance}
            shared = solve(f, state, SPAN, **how).stats.nfe
            by_worst = solve(f, state, SPAN, norm=worst, **how).stats.nfe
            rows.append({"size": size, "shared": float(shared / alone), "worst": float(by_worst / alone)})
    return rows
