"""The planar flow of Rezende & Mohamed (2015), which the paper compares with."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neural_ode.errors import UnknownNameError
from neural_ode.nn import check_points, draw_base, positive, standard_normal

__all__ = ["PlanarFlow", "apply_planar_layers", "constrained"]

BISECTIONS = 60
"""Halvings of the interval that holds a root: down to the rounding error of float64."""


class PlanarFlow(nn.Module):
    """Layers `z' = z + û tanh(wᵀz + b)`; Rezende & Mohamed (2015), equation 10.

    Args:
        dim: of the points.
        layers: how many.
        leads_to: where the layers lead: from the base distribution to the `"data"`, as for density matching, or
            from the data to the `"base"`, so that the density of data can be had without inverting them.

    Raises:
        InvalidArgumentError: `dim` or `layers` is no positive number.
        UnknownNameError: `leads_to` is neither of the two.
    """

    def __init__(self, dim: int, layers: int, leads_to: Literal["data", "base"] = "data"):
        super().__init__()
        if leads_to not in ("data", "base"):
            raise UnknownNameError("leads_to", leads_to, ("data", "base"))
        self.dim, self.leads_to = positive("dim", dim), leads_to
        scale = dim**-0.5
        self.w = nn.Parameter(scale * torch.randn(positive("layers", layers), dim))
        self.u = nn.Parameter(0.1 * scale * torch.randn(layers, dim))
        self.b = nn.Parameter(0.1 * torch.randn(layers))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Through all layers.

        Args:
            z: shape (n, dim).

        Returns:
            The points behind the last layer, shape (n, dim), and `log |det ∂z'/∂z|`, shape (n,).
        """
        check_points("z", z, self.dim)
        coordinates, log_det = apply_planar_layers(self.w, self.u, self.b, z.unbind(-1))
        return torch.stack(coordinates, -1), log_det

    def trajectory(self, z: Tensor) -> Tensor:
        """The points in front of the first layer and behind each, shape (layers + 1, n, dim)."""
        check_points("z", z, self.dim)
        states = [z]
        for w, u, b in zip(self.w, constrained(self.w, self.u), self.b, strict=True):
            states.append(states[-1] + u * torch.tanh(states[-1] @ w + b)[:, None])
        return torch.stack(states)

    @torch.no_grad()
    def inverse(self, z: Tensor) -> Tensor:
        """The points that the layers bring to `z`, shape (n, dim) both.

        `α = wᵀz` solves `α + wᵀû tanh(α + b) = wᵀz'`, whose left side grows with `α`: by bisection. Not
        differentiable.
        """
        check_points("z", z, self.dim)
        for w, u, b in reversed(list(zip(self.w, constrained(self.w, self.u), self.b, strict=True))):
            product, goal = torch.dot(w, u), z @ w
            low, high = goal - product.abs(), goal + product.abs()
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                below = middle + product * torch.tanh(middle + b) < goal
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            z = z - u * torch.tanh((low + high) / 2 + b)[:, None]
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at `x`, shape (n, dim), in nats; shape (n,).

        Where the layers lead to the data they are inverted, and there is no gradient with respect to them.
        """
        if self.leads_to == "base":
            z, log_det = self.forward(x)
            return standard_normal(z) + log_det
        z = self.inverse(x)
        return standard_normal(z) - self._log_det(z)

    def push_forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Where points `z` of the base distribution, shape (n, dim), go, and the log-density there.

        Returns:
            Shapes (n, dim) and (n,).
        """
        if self.leads_to == "base":
            x = self.inverse(z)
            return x, standard_normal(z) + self._log_det(x)
        x, log_det = self.forward(z)
        return x, standard_normal(z) - log_det

    def _log_det(self, z: Tensor) -> Tensor:
        return apply_planar_layers(self.w, self.u, self.b, z.unbind(-1))[1]

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` points of the flow's distribution, shape (n, dim).

        Raises:
            InvalidArgumentError: `n` is no whole number of at least one.
        """
        return self.push_forward(draw_base(n, self.b, self.dim, generator))[0]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, layers={len(self.b)}, leads_to={self.leads_to!r}"


def constrained(w: Tensor, u: Tensor) -> Tensor:
    """`û = u + (m(wᵀu) - wᵀu) w/‖w‖²`, `m(x) = log(1 + eˣ) - 1`: then `wᵀû > -1`, and a layer can be inverted.

    Rezende & Mohamed (2015), appendix A.1.

    Args:
        w, u: shape (..., dim).
    """
    product = (w * u).sum(-1, keepdim=True)
    return u + (F.softplus(product) - 1 - product) * w / w.square().sum(-1, keepdim=True)


def apply_planar_layers(w: Tensor, u: Tensor, b: Tensor, z: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Planar layers on coordinates that lie in tensors of their own, so that all operations are elementwise.

    `log |det| = Σ log(1 + (1 - tanh²) ûᵀw)`; Rezende & Mohamed (2015), equation 12.

    Args:
        w, u: shape (..., layers, dim); `u` not yet constrained.
        b: shape (..., layers).
        z: the coordinates, each of shape (..., n).

    Returns:
        The new coordinates, and the logarithm of the determinant, shape (..., n).
    """
    coordinates, log_det = list(z), torch.zeros_like(z[0])
    free = constrained(w, u)
    products = F.softplus((u * w).sum(-1)) - 1  # ûᵀw, never below -1 by rounding
    for k in range(b.shape[-1]):
        a = b[..., k, None] + sum(w[..., k, i, None] * x for i, x in enumerate(coordinates))
        h = torch.tanh(a)
        coordinates = [x + free[..., k, i, None] * h for i, x in enumerate(coordinates)]
        log_det = log_det + torch.log1p((1 - h * h) * products[..., k, None])
    return coordinates, log_det
