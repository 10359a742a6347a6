"""Iterations of training: this library beside torchdiffeq's own examples.

The examples are written here anew after what theirs do, with the weights of this library's models, so that both
sides start from the same numbers, see the same data and must follow the same curve of the loss.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Contender, Run, Unavailable
from neural_ode import NeuralODEWarning, odeint_adjoint
from neural_ode.nn import ContinuousFlow, standard_normal
from reproduction.data.points import points
from reproduction.data.spirals import draw_spirals
from reproduction.models.flows import HyperNetwork, PlanarDynamics
from reproduction.models.gaussian import kl_to_standard_normal, normal_log_density
from reproduction.models.latent_ode import LatentODE, spiral_latent_ode

__all__ = ["cnf_contenders", "cnf_import_contenders", "latent_ode_adjoint_contenders", "latent_ode_contenders"]

ITERATIONS = 3
"""Of Adam, in what is timed; their losses are the result that is compared."""

Loss = Callable[[int], Tensor]
Built = tuple[nn.Module, Loss, Callable[[], int]]
"""A model, its loss on the batch of an iteration, and the evaluations that the last iteration took, both ways."""


def _training(name: str, build: Callable[[], Built], rate: float, compiles: bool) -> Contender:
    """Some iterations from the initial weights on."""

    def iterations() -> Iterator[tuple[float, int]]:
        model, loss, evaluations = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for k in range(ITERATIONS):
            torch.manual_seed(k)
            optimizer.zero_grad()
            value = loss(k)
            torch.autograd.backward(value)
            optimizer.step()
            yield value.item(), evaluations()

    def run() -> tuple[Any, int | None]:
        with warnings.catch_warnings():
            warnings.simplefilter("error", NeuralODEWarning)  # nothing compiled: a row with a wrong name
            try:
                losses, nfe = zip(*iterations(), strict=True)
            except NeuralODEWarning as warning:
                raise Unavailable(f"{warning}") from None
        return [torch.tensor(losses, dtype=torch.float64)], sum(nfe)

    def prepare() -> Run:
        return run

    return Contender(name, prepare, compiles=compiles)


def _spent(model: ContinuousFlow | LatentODE) -> int:
    backward = model.stats.backward
    return model.stats.nfe + (0 if backward is None else backward.nfe)


class _Counted(nn.Module):
    """Dynamics that count how often they have been called since the count was last asked for.

    Args:
        f: the dynamics.
    """

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f, self.calls = f, 0

    def forward(self, t: Tensor, y: Any) -> Any:
        self.calls += 1
        return self.f(t, y)

    def spent(self) -> int:
        calls, self.calls = self.calls, 0
        return calls


# The continuous flow: examples/cnf.py ----------------------------------------------------------------------------


def _flow(small: bool, **how: Any) -> ContinuousFlow:
    """64 units, weights from a network of two layers of 32, from t = 0 to 10 at a tolerance of 1e-5."""
    torch.manual_seed(0)
    dynamics = PlanarDynamics(HyperNetwork(2, 64, 32))
    with torch.no_grad():
        dynamics.weights.layers[-1].weight.div_(8)  # the example takes the mean of its units, this is their sum
    return ContinuousFlow(dynamics, 2, (0.0, 1.0 if small else 10.0), rtol=1e-5, atol=1e-5, **how)


class ExampleFlow(nn.Module):
    """The dynamics as the example has them: a copy of the points for each unit, the trace by autograd.

    Args:
        weights: as in `PlanarDynamics`.
    """

    def __init__(self, weights: nn.Module):
        super().__init__()
        self.weights = weights

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """`z` of shape (n, 2) and `log p` of shape (n, 1), in and out."""
        z = state[0]
        with torch.enable_grad():
            z.requires_grad_(True)
            w, u, b = self.weights(t)
            copies = z.unsqueeze(0).repeat(len(w), 1, 1)
            h = torch.tanh(torch.matmul(copies, w[:, :, None]) + b[:, None, None])
            slope = torch.matmul(h, u[:, None, :]).sum(0)
            rows = [torch.autograd.grad(slope[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)]
        return slope, -torch.stack(rows).sum(0)[:, None]


def _circles(small: bool) -> list[Tensor]:
    return [points("two circles", 32 if small else 512, k) for k in range(ITERATIONS)]


def _example_flow(small: bool, interface: Callable[[], Callable[..., Any]]) -> Callable[[], Built]:
    """The example with the `odeint_adjoint` of a library."""
    data = _circles(small)

    def build() -> Built:
        flow = _flow(small)
        example = _Counted(ExampleFlow(flow.f.weights))
        times = torch.tensor(flow.span[::-1])

        def loss(k: int) -> Tensor:
            start = (data[k], torch.zeros(len(data[k]), 1))
            z, change = interface()(example, start, times, rtol=1e-5, atol=1e-5, method="dopri5")
            return -(standard_normal(z[-1]) - change[-1][:, 0]).mean()

        return example, loss, example.spent

    return build


def cnf_import_contenders(small: bool) -> list[Contender]:
    """The example, with one library or the other behind the same name."""
    return [
        _training("torchdiffeq", _example_flow(small, lambda: _torchdiffeq().odeint_adjoint), 1e-3, compiles=False),
        _training("neural_ode", _example_flow(small, lambda: odeint_adjoint), 1e-3, compiles=False),
    ]


def cnf_contenders(small: bool) -> list[Contender]:
    """Maximum likelihood on two circles, 512 points, gradients by the adjoint method."""
    data = _circles(small)

    def ours(**how: Any) -> Callable[[], Built]:
        def build() -> Built:
            flow = _flow(small, **how)
            return flow, lambda k: -flow.log_prob(data[k]).mean(), lambda: _spent(flow)

        return build

    return [
        _training("torchdiffeq", _example_flow(small, lambda: _torchdiffeq().odeint_adjoint), 1e-3, compiles=False),
        _training("neural_ode", ours(gradient="backsolve"), 1e-3, compiles=False),
        _training("neural_ode, compiled", ours(gradient="backsolve", compile=True), 1e-3, compiles=True),
    ]


# The latent ODE: examples/latent_ode.py --------------------------------------------------------------------------

_TOLERANCE = {"rtol": 1e-7, "atol": 1e-9}
"""torchdiffeq's defaults, which the example leaves as they are."""


class ExampleLatentODE(nn.Module):
    """The example's way through this library's weights: its recurrent network is a loop, with a layer for the
    distribution at every step.

    Args:
        net: whose weights are used.
        solve: `odeint` of torchdiffeq.
    """

    def __init__(self, net: LatentODE, solve: Callable[..., Tensor]):
        super().__init__()
        self.net, self.dynamics, self.solve = net, _Counted(net.dynamics), solve

    def loss(self, values: Tensor, times: Tensor) -> Tensor:
        """Minus the mean lower bound per observation, in nats."""
        rnn, out = self.net.recognition.rnn, self.net.recognition.out
        state = values.new_zeros(len(values), rnn.hidden_size)
        weights: Sequence[Tensor] = (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0 + rnn.bias_hh_l0)
        joined = torch.cat(weights[:2], 1)
        for i in reversed(range(values.shape[1])):
            together = torch.cat([values[:, i], state], 1)
            state = torch.tanh(nn.functional.linear(together, joined, weights[2]))
            made = out(state)
        mean, log_variance = made.chunk(2, 1)
        z0 = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        path = self.solve(self.dynamics, z0, times, **_TOLERANCE, method="dopri5").transpose(0, 1)
        likelihood = normal_log_density(values, self.net.decoder(path), 2 * math.log(self.net.noise)).sum((1, 2))
        return -(likelihood - kl_to_standard_normal(mean, log_variance)).mean() / values.shape[1]


def latent_ode_contenders(small: bool) -> list[Contender]:
    """As the example is by default: gradients through the steps."""
    return _latent_ode(small, "direct")


def latent_ode_adjoint_contenders(small: bool) -> list[Contender]:
    """The example with `--adjoint`: between every two of the 100 times a solve of its own goes backwards.

    `recursive_checkpoint` saves memory too, but goes back through the steps.
    """
    return _latent_ode(small, "backsolve", "recursive_checkpoint")


def _latent_ode(small: bool, gradient: str, other: str | None = None) -> list[Contender]:
    """The example's full batch: 1000 spirals, 100 observations at the same times; and another way to gradients."""
    spirals = draw_spirals("example", 16 if small else 1000, 100, 0.3, 0)
    values, grid = spirals.values, torch.linspace(0, 6 * math.pi / 5, 100)
    times = grid.expand(len(values), -1)

    def net(**how: Any) -> LatentODE:
        torch.manual_seed(0)
        return spiral_latent_ode(0.3, layers=2, with_times=False, **_TOLERANCE, **how)

    def ours(gradient: str, **how: Any) -> Callable[[], Built]:
        def build() -> Built:
            made = net(gradient=gradient, **how)
            return made, lambda k: -made.elbo(values, times).mean() / values.shape[1], lambda: _spent(made)

        return build

    def published() -> Built:
        library = _torchdiffeq()
        example = ExampleLatentODE(net(), library.odeint if gradient == "direct" else library.odeint_adjoint)
        return example, lambda k: example.loss(values, grid), example.dynamics.spent

    entered = [
        _training("torchdiffeq", published, 1e-2, compiles=False),
        _training("neural_ode", ours(gradient), 1e-2, compiles=False),
        _training("neural_ode, compiled", ours(gradient, compile=True), 1e-2, compiles=True),
    ]
    return entered if other is None else [*entered, _training(other, ours(other), 1e-2, compiles=False)]


def _torchdiffeq() -> Any:
    try:
        import torchdiffeq
    except ImportError:
        raise Unavailable("torchdiffeq is not installed") from None
    return torchdiffeq
