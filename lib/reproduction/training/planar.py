"""Many planar flows trained at once, many steps of RMSprop a call.

Figure 4 asks for half a million steps, each a few thousand operations on small tensors. Here a chunk of steps is
one compiled graph: a loop over the steps, in it a scan over the layers and one back, with the derivatives written
out. Its size does not depend on the number of layers or steps. Runs (targets times seeds) are the first dimension.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neural_ode.compiled import fold
from reproduction.models.flows.discrete import constrained

__all__ = ["Energy", "PlanarState", "planar_gradient", "planar_steps"]

Energy = Callable[[Tensor, Tensor], Tensor]
"""What the points behind the last layer cost, elementwise in their two coordinates, shapes (runs, batch)."""

DECAY, MOMENTUM, EPSILON = 0.99, 0.9, 1e-8

_vjp: Any = torch.func.vjp  # its stub does not know how many values it returns


class PlanarState(NamedTuple):
    """Parameters of stacked flows with the averages of RMSprop.

    Attributes:
        w, u, b: shapes (runs, layers, 2), (runs, layers, 2) and (runs, layers).
        squares_w, squares_u, squares_b: running means of the squared gradients.
        speed_w, speed_u, speed_b: momentum.
    """

    w: Tensor
    u: Tensor
    b: Tensor
    squares_w: Tensor
    squares_u: Tensor
    squares_b: Tensor
    speed_w: Tensor
    speed_u: Tensor
    speed_b: Tensor

    @classmethod
    def start(cls, w: Tensor, u: Tensor, b: Tensor) -> "PlanarState":
        """Before the first step."""
        return cls(w, u, b, *(torch.zeros_like(x) for x in (w, u, b, w, u, b)))


def planar_steps(
    state: PlanarState, inputs: Tensor, rates: Tensor, weights: Tensor, energy: Energy, key: str
) -> PlanarState:
    """Steps of RMSprop (momentum 0.9, as Rezende & Mohamed 2015) down `mean(weight · energy(z') - log |det|)`.

    Args:
        state: where to start.
        inputs: points in front of the first layer, shape (steps, runs, batch, 2).
        rates: the learning rate of each step, shape (steps,).
        weights: of the energy at each step, shape (steps,).
        energy: its code, with what it refers to, is identified by `key`.
        key: names the energy.

    Returns:
        The state after the last step. Where nothing can be compiled, by loops in Python.
    """
    for x in state:
        torch._dynamo.maybe_mark_dynamic(x, 1)  # one graph for all numbers of layers
    rows = (inputs, rates, weights)
    return PlanarState(*fold(_step, tuple(state), rows, fixed=(energy,), key=("planar", key)))


def planar_gradient(w: Tensor, u: Tensor, b: Tensor, z: Tensor, weight: Tensor, energy: Energy) -> list[Tensor]:
    """Derivatives of `mean(weight · energy(z') - log |det|)`, summed over runs, written out.

    With `a = wᵀz + b`, `h = tanh a`, `s = 1 - h²`, `c = wᵀû`, and `g` the derivative with respect to `z'`, that
    with respect to `a` is `q = s ûᵀg + 2 c h s / (1 + c s) / batch`, and that with respect to `z` is `g + q w`.

    Args:
        w, u, b: of the layers, shapes as in `PlanarState`.
        z: points in front of the first layer, shape (runs, batch, 2).
        weight: shape ().
        energy: of the points behind the last one.

    Returns:
        With respect to `w`, `u` and `b`.
    """
    free, pull = _vjp(constrained, w, u)
    # Layers first, then coordinates, runs, batch.
    layers_w, layers_u = (x.permute(1, 2, 0)[..., None].contiguous() for x in (w, free))
    last, (states, h) = _scan(
        _forwards, z.permute(2, 0, 1).contiguous(), (layers_w, layers_u, b.T[..., None].contiguous())
    )
    share = 1.0 / z.shape[1]
    cost, pull_cost = _vjp(energy, last[0], last[1])
    g = torch.stack(pull_cost((share * weight).expand_as(cost)))
    slope = 1 - h * h
    product = (layers_w * layers_u).sum(1)
    ratio = slope / (1 + product * slope)
    _, (outer, q) = _scan(_backwards, g, (layers_w, layers_u, slope, 2 * share * product * h * ratio), reverse=True)
    from_det = -share * ratio.sum(-1).T[..., None]
    grad_w = (q[:, None] * states).sum(-1).permute(2, 0, 1) + from_det * free
    grad_u = (outer * h[:, None]).sum(-1).permute(2, 0, 1) + from_det * w
    through_w, grad_u = pull(grad_u)
    return [grad_w + through_w, grad_u, q.sum(-1).T]


def _forwards(z: Tensor, layer: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    w, u, b = layer
    h = torch.tanh((w * z).sum(0) + b)
    return z + u * h, (z.clone(), h)


def _backwards(g: Tensor, layer: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    w, u, slope, from_det = layer
    q = slope * (u * g).sum(0) + from_det
    return g + q * w, (g.clone(), q)


def _scan(
    f: Callable[..., Any], carry: Tensor, layers: tuple[Tensor, ...], reverse: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """`f` from layer to layer: the last carry, and what was put out at each layer, stacked."""
    if torch.compiler.is_compiling():
        from torch._higher_order_ops.scan import scan

        last, outputs = scan(f, carry, layers, reverse=reverse)
        return last, outputs
    made = []
    for layer in list(zip(*layers, strict=True))[:: -1 if reverse else 1]:
        carry, output = f(carry, layer)
        made.append(output)
    return carry, [torch.stack(x) for x in zip(*made[:: -1 if reverse else 1], strict=True)]


def _step(energy: Energy, state: tuple[Tensor, ...], z: Tensor, rate: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    (w, u, b), squares, speeds = state[:3], state[3:6], state[6:]
    gradients = planar_gradient(w, u, b, z, weight, energy)
    squares = tuple(DECAY * v + (1 - DECAY) * g * g for v, g in zip(squares, gradients, strict=True))
    speeds = tuple(
        MOMENTUM * s + g / (v.sqrt() + EPSILON) for s, g, v in zip(speeds, gradients, squares, strict=True)
    )
    return (*(x - rate * s for x, s in zip((w, u, b), speeds, strict=True)), *squares, *speeds)
