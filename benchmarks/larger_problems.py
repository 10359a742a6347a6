"""Problems of the sizes that users ask about; see `problems` for the form."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.problems import Problem

__all__ = [
    "LARGER",
    "WideNetwork",
    "brusselator",
    "brusselator_pattern",
    "hutchinson_flow",
    "lorenz",
    "perceptron",
    "wide_network",
]


class WideNetwork(nn.Module):
    """Three hidden layers of one width, tanh between them."""

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        sizes = (dimension, width, width, width, dimension)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Shape (n, dimension) in and out."""
        slope: Tensor = self.layers(y)
        return slope


def perceptron(xp: Any, y: Any, params: Sequence[Any]) -> Any:
    """The layers of `WideNetwork`, for JAX and NumPy."""
    *hidden, last = zip(params[::2], params[1::2], strict=True)
    for weight, bias in hidden:
        y = xp.tanh(y @ weight.T + bias)
    return y @ last[0].T + last[1]


def wide_network(small: bool = False) -> Problem:
    """1024 states of 16 numbers, three layers of 256 units."""

    def formula(xp: Any, t: Any, y: Any, params: Sequence[Any]) -> Any:
        return perceptron(xp, y, params)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f = WideNetwork(16, 8 if small else 256)
        for layer in f.layers[::2]:
            nn.init.normal_(layer.weight, std=1.5 * layer.in_features**-0.5)
        y0 = torch.randn(8 if small else 1024, 16)
    return Problem(f"3×256 network, batch {len(y0)}", f, y0, torch.linspace(0, 2, 2), formula)


class HutchinsonFlow(nn.Module):
    """A continuous normalizing flow whose trace is estimated (Hutchinson 1989; Grathwohl et al. 2019).

    `d log p/dt = -ε·(∂f/∂z)ᵀε` with the signs ε fixed for the solve.
    """

    def __init__(self, noise: Tensor, width: int) -> None:
        super().__init__()
        self.network = WideNetwork(noise.shape[1], width)
        self.noise: Tensor
        self.register_buffer("noise", noise)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """`z` of shape (n, dimension) and `log p` of shape (n, 1), in and out."""
        slope, pull = torch.func.vjp(self.network.layers, state[0])[:2]
        (row,) = pull(self.noise)
        return slope, -(row * self.noise).sum(1, keepdim=True)


def hutchinson_flow(small: bool = False) -> Problem:
    """256 points of 64 numbers, three layers of 128 units."""
    n, dimension = (8, 4) if small else (256, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        noise = torch.randint(0, 2, (n, dimension)).float() * 2 - 1
        f, z = HutchinsonFlow(noise, 8 if small else 128), torch.randn(n, dimension)

    def formula(xp: Any, t: Any, state: Any, params: Sequence[Any]) -> Any:
        import jax

        signs = xp.asarray(noise.numpy())
        slope, pull = jax.vjp(lambda z: perceptron(xp, z, params), state[0])
        return slope, -(pull(signs)[0] * signs).sum(1, keepdims=True)

    state = (z, torch.zeros(n, 1))
    return Problem(f"CNF in {dimension} dimensions", f, state, torch.linspace(0, 1, 2), formula, plain=False)


class Brusselator(nn.Module):
    """Two substances that react and diffuse; Hairer & Wanner II, section IV.10, without its pulse.

    `u' = 1 + u² v - 4.4 u + α Δu`, `v' = 3.4 u - u² v + α Δv` with α = 0.1, periodic in the unit square.
    """

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Shape (2, n, n) in and out: both concentrations on a grid."""
        n = y.shape[-1]
        u, v = y.unbind(0)
        around = F.pad(y[None], (1, 1, 1, 1), mode="circular")[0]
        sides = around[:, :-2, 1:-1] + around[:, 2:, 1:-1] + around[:, 1:-1, :-2] + around[:, 1:-1, 2:]
        spread = 0.1 * n * n * (sides - 4 * y)
        made = u * u * v
        return torch.stack([1 + made - 4.4 * u, 3.4 * u - made]) + spread


def brusselator(small: bool = False) -> Problem:
    """On a grid of 32 × 32: 2048 numbers, the fastest of which decays some 800 times as fast as time passes."""
    n = 4 if small else 32

    def formula(xp: Any, t: Any, y: Any, _: Sequence[Any]) -> Any:
        u, v = y[0], y[1]
        sides = sum(xp.roll(y, shift, axis) for axis in (1, 2) for shift in (1, -1))
        made = u * u * v
        return xp.stack([1 + made - 4.4 * u, 3.4 * u - made]) + 0.1 * n * n * (sides - 4 * y)

    x = torch.arange(n, dtype=torch.float64) / n
    u = 22 * x * (1 - x) ** 1.5
    y0 = torch.stack([u.expand(n, n), (27 / 22 * u)[:, None].expand(n, n)])
    return Problem(f"Brusselator, {n} × {n}", Brusselator(), y0, torch.linspace(0, 1, 2).double(), formula)


def brusselator_pattern(n: int) -> Any:
    """Where the Jacobian of the Brusselator on a grid of n × n has entries, as a sparse matrix of SciPy."""
    from scipy import sparse

    ring = sparse.eye_array(n) + sum(sparse.eye_array(n, k=k) for k in (1, -1, n - 1, 1 - n))
    grid = sparse.kron(ring, sparse.eye_array(n)) + sparse.kron(sparse.eye_array(n), ring)
    both = sparse.kron(sparse.eye_array(2), grid)
    return (both + sparse.kron(np.ones((2, 2)), sparse.eye_array(n * n))).tocsr()


class Lorenz(nn.Module):
    """The butterfly; Hairer, Nørsett & Wanner I, section I.16."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Shape (…, 3) in and out."""
        a, b, c = y.unbind(-1)
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def lorenz(small: bool = False) -> Problem:
    """10,000 of them, for as long as chaos leaves the solutions of all libraries alike."""

    def formula(xp: Any, t: Any, y: Any, _: Sequence[Any]) -> Any:
        a, b, c = y[..., 0], y[..., 1], y[..., 2]
        return xp.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)

    n = 8 if small else 10_000
    centre = torch.tensor([0.0, 0.0, 25.0], dtype=torch.float64)
    y0 = centre + 5 * torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Problem(f"{n} Lorenz systems", Lorenz(), y0, torch.linspace(0, 2, 2).double(), formula)


LARGER: dict[str, Callable[[bool], Problem]] = {
    "wide-network": wide_network,
    "hutchinson-flow": hutchinson_flow,
    "brusselator": brusselator,
    "lorenz": lorenz,
}
