"""The problems that are solved.

Every right-hand side is there twice: as a module for the libraries on PyTorch, and as a formula for NumPy and JAX.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reproduction.models.mnist import ConvDynamics

__all__ = ["PROBLEMS", "Problem", "arenstorf", "cnf", "lotka_volterra", "mnist_block", "network", "van_der_pol"]

Formula = Callable[[Any, Any, Any, Sequence[Any]], Any]
"""`f(numpy or jax.numpy, t, y, parameters)`, the parameters in the order of the module's."""


@dataclass(frozen=True)
class Problem:
    """An initial value problem.

    Attributes:
        title: for figures.
        f: the dynamics, for PyTorch.
        y0: the initial state, in the dtype to solve in.
        t: output times in that dtype.
        formula: the dynamics, for NumPy and JAX.
        plain: whether the formula works with NumPy, and `f` with a time for each sample and in TorchScript.
        reference: method and tolerance of the reference solution where SciPy cannot make it.
    """

    title: str
    f: nn.Module
    y0: Tensor | tuple[Tensor, ...]
    t: Tensor
    formula: Formula
    plain: bool = True
    reference: tuple[str, float] = ("dopri8", 1e-10)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors of the state."""
        return self.y0 if isinstance(self.y0, tuple) else (self.y0,)

    @property
    def dtype(self) -> torch.dtype:
        """Of the state."""
        return self.parts[0].dtype


class LotkaVolterra(nn.Module):
    """Prey and predators: `x' = 1.5 x - x y`, `y' = -3 y + x y`; Hairer, Nørsett & Wanner I, section I.1."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Shape (…, 2) in and out."""
        prey, predators = y.unbind(-1)
        return torch.stack([1.5 * prey - prey * predators, prey * predators - 3 * predators], -1)


def lotka_volterra(small: bool = False) -> Problem:
    """One orbit of about four."""

    def formula(xp: Any, t: Any, y: Any, _: Sequence[Any]) -> Any:
        prey, predators = y[..., 0], y[..., 1]
        return xp.stack([1.5 * prey - prey * predators, prey * predators - 3 * predators], -1)

    y0 = torch.tensor([10.0, 5.0], dtype=torch.float64)
    times = torch.linspace(0, 2 if small else 10, 21, dtype=torch.float64)
    return Problem("Lotka–Volterra", LotkaVolterra(), y0, times, formula)


class VanDerPol(nn.Module):
    """`x'' = 2 (1 - x²) x' - x`; Hairer, Nørsett & Wanner I, section I.16, with μ = 2."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Shape (…, 2) in and out."""
        x, v = y.unbind(-1)
        return torch.stack([v, 2 * (1 - x * x) * v - x], -1)


def van_der_pol(small: bool = False) -> Problem:
    """256 oscillators, started from all over [-2, 2]²."""

    def formula(xp: Any, t: Any, y: Any, _: Sequence[Any]) -> Any:
        x, v = y[..., 0], y[..., 1]
        return xp.stack([v, 2 * (1 - x * x) * v - x], -1)

    y0 = 4 * torch.rand(8 if small else 256, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 2
    times = torch.linspace(0, 2 if small else 10, 50, dtype=torch.float64)
    return Problem(f"Van der Pol, μ = 2, batch {len(y0)}", VanDerPol(), y0, times, formula)


_MOON = 0.012277471
_PERIOD = 17.0652165601579625588917206249


class Arenstorf(nn.Module):
    """A satellite between earth and moon; Hairer, Nørsett & Wanner I, section II.0, equations 0.1 and 0.2."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Shape (…, 4) in and out: positions, then velocities."""
        moon = 0.012277471
        x1, x2, v1, v2 = y.unbind(-1)
        to_earth = ((x1 + moon) ** 2 + x2**2) ** 1.5
        to_moon = ((x1 - (1 - moon)) ** 2 + x2**2) ** 1.5
        a1 = x1 + 2 * v2 - (1 - moon) * (x1 + moon) / to_earth - moon * (x1 - (1 - moon)) / to_moon
        a2 = x2 - 2 * v1 - (1 - moon) * x2 / to_earth - moon * x2 / to_moon
        return torch.stack([v1, v2, a1, a2], -1)


def arenstorf(small: bool = False) -> Problem:
    """One period of the orbit."""

    def formula(xp: Any, t: Any, y: Any, _: Sequence[Any]) -> Any:
        x1, x2, v1, v2 = (y[..., i] for i in range(4))
        to_earth = ((x1 + _MOON) ** 2 + x2**2) ** 1.5
        to_moon = ((x1 - (1 - _MOON)) ** 2 + x2**2) ** 1.5
        a1 = x1 + 2 * v2 - (1 - _MOON) * (x1 + _MOON) / to_earth - _MOON * (x1 - (1 - _MOON)) / to_moon
        a2 = x2 - 2 * v1 - (1 - _MOON) * x2 / to_earth - _MOON * x2 / to_moon
        return xp.stack([v1, v2, a1, a2], -1)

    y0 = torch.tensor([0.994, 0.0, 0.0, -2.00158510637908252240537862224], dtype=torch.float64)
    times = torch.linspace(0, 0.5 if small else _PERIOD, 3, dtype=torch.float64)
    return Problem("Arenstorf orbit", Arenstorf(), y0, times, formula)


class Network(nn.Module):
    """Two numbers, 50 hidden units, of the cubes of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Shape (…, 2) in and out."""
        slope: Tensor = self.layers(y**3)
        return slope


def network(small: bool = False) -> Problem:
    """The network at random weights; dopri5 takes some 150 evaluations at a tolerance of 1e-6."""

    def formula(xp: Any, t: Any, y: Any, params: Sequence[Any]) -> Any:
        W1, b1, W2, b2 = params
        return xp.tanh(y**3 @ W1.T + b1) @ W2.T + b2

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f, y0 = Network(), torch.randn(128, 2)
    y0 = y0[:4] if small else y0
    times = torch.linspace(0, 1 if small else 10, 50)
    return Problem(f"2–50–2 network, batch {len(y0)}", f, y0, times, formula)


def mnist_block(batch: int) -> Problem:
    """The ODE block of the MNIST experiment: 64 channels of 6 × 6 pixels.

    Its kinks make methods of high order take many steps, so the reference is of order 3.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f, y0 = ConvDynamics(), torch.randn(batch, 64, 6, 6)
    times = torch.linspace(0, 1, 2)
    title = f"MNIST block, batch {batch}"
    return Problem(title, f, y0, times, _convolutions, plain=False, reference=("bosh3", 1e-8))


def _convolutions(xp: Any, t: Any, z: Any, params: Sequence[Any]) -> Any:
    """`ConvDynamics`, for JAX."""
    from jax import lax

    def normalised(z: Any, scale: Any, shift: Any) -> Any:
        n, channels, *pixels = z.shape
        groups = z.reshape(n, 32, -1)
        centred = groups - groups.mean(-1, keepdims=True)
        unit = centred / xp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return unit.reshape(n, channels, *pixels) * scale[:, None, None] + shift[:, None, None]

    def convolved(z: Any, weight: Any, bias: Any) -> Any:
        time = xp.broadcast_to(xp.asarray(t, z.dtype), (1, 1, *z.shape[2:]))
        return channels_last(z, weight[:, 1:]) + bias[:, None, None] + channels_last(time, weight[:, :1])

    def channels_last(z: Any, weight: Any) -> Any:
        # In a loop on a CPU, XLA is some fifty times slower with the channels first.
        z, weight = xp.transpose(z, (0, 2, 3, 1)), xp.transpose(weight, (2, 3, 1, 0))
        names = ("NHWC", "HWIO", "NHWC")
        out = lax.conv_general_dilated(z, weight, (1, 1), ((1, 1), (1, 1)), dimension_numbers=names)
        return xp.transpose(out, (0, 3, 1, 2))

    s1, b1, s2, b2, s3, b3, W1, c1, W2, c2 = params
    z = convolved(xp.maximum(normalised(z, s1, b1), 0), W1, c1)
    z = convolved(xp.maximum(normalised(z, s2, b2), 0), W2, c2)
    return normalised(z, s3, b3)


class ContinuousFlow(nn.Module):
    """A continuous normalizing flow of planar units whose weights a second network makes from the time.

    Chen et al. (2018), section 4: `z' = 1/M Σ u_m tanh(w_m·z + b_m)`, with gated `u_m`, and
    `d log p/dt = -tr ∂z'/∂z = -1/M Σ (1 - tanh²) u_m·w_m`.
    """

    def __init__(self, units: int = 64, hidden: int = 32) -> None:
        super().__init__()
        self.units = units
        self.hyper = nn.Sequential(
            nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 7 * units)
        )

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """`z` of shape (n, 2) and `log p` of shape (n, 1), in and out."""
        z, _ = state
        made = self.hyper(t.reshape(1))
        W, U, gates = made[: 6 * self.units].reshape(3, self.units, 2).unbind()
        U = U * torch.sigmoid(gates)
        h = torch.tanh(z @ W.T + made[6 * self.units :])
        trace = (1 - h**2) @ (U * W).sum(1, keepdim=True)
        return h @ U / self.units, -trace / self.units


def cnf(small: bool = False) -> Problem:
    """512 points, carried from t = 0 to 10."""

    def formula(xp: Any, t: Any, state: Any, params: Sequence[Any]) -> Any:
        z, _ = state
        W1, b1, W2, b2, W3, b3 = params
        made = xp.tanh(xp.asarray(t, z.dtype).reshape(1) @ W1.T + b1)
        made = xp.tanh(made @ W2.T + b2) @ W3.T + b3
        units = len(b3) // 7
        W, U, gates = made[: 6 * units].reshape(3, units, 2)
        U = U / (1 + xp.exp(-gates))
        h = xp.tanh(z @ W.T + made[6 * units :])
        return h @ U / units, -((1 - h**2) @ (U * W).sum(1, keepdims=True)) / units

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f, z = ContinuousFlow(), torch.randn(4 if small else 512, 2)
    times = torch.linspace(0, 1 if small else 10, 2)
    return Problem(f"CNF, 64 units, batch {len(z)}", f, (z, torch.zeros(len(z), 1)), times, formula, plain=False)


PROBLEMS: dict[str, Callable[[bool], Problem]] = {
    "lotka-volterra": lotka_volterra,
    "van-der-pol": van_der_pol,
    "arenstorf": arenstorf,
    "network": network,
    "mnist-block": lambda small: mnist_block(4 if small else 16),
    "cnf": cnf,
}
