"""The adjoint of a loss of several observations, piece by piece (Algorithm 1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.gradients import AugmentedSystem

__all__ = ["Piece", "adjoint_pieces"]


class Piece(NamedTuple):
    """The adjoint between two observations: times, descending, shape (k,), and `a(t)`, shape (k, *state); on the
    CPU."""

    t: Tensor
    a: Tensor


def adjoint_pieces(
    f: nn.Module,
    y0: Tensor,
    t: Tensor,
    grad_y: Callable[[Tensor], Tensor],
    points: int = 50,
    tolerance: float = 1e-8,
) -> list[Piece]:
    """The adjoint of a loss of the states at the times `t[1:]`, backwards from one to the next (Algorithm 1).

    Args:
        f: the dynamics.
        y0: the state at `t[0]`.
        t: ascending times, shape (n,).
        grad_y: gives `∂L/∂z(t_i)` of the states at `t[1:]`, both of shape (n - 1, *state).
        points: of each piece.
        tolerance: of the solves.

    Returns:
        One piece for each observation, the last one first.
    """
    how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    with torch.no_grad():
        states = solve(f, y0, t, **how).y
        assert isinstance(states, Tensor)
        jumps = grad_y(states[1:])
        system = AugmentedSystem(f, y0, ())
        pieces: list[Piece] = []
        a = torch.zeros_like(y0)
        for i in range(len(t) - 1, 0, -1):
            times = torch.linspace(float(t[i]), float(t[i - 1]), points, dtype=torch.float64)
            path = solve(_without_graph(system), system.pack(states[i], a + jumps[i - 1], ()), times, **how).y
            assert isinstance(path, Tensor)
            found = torch.stack([system.adjoint(state) for state in path])
            pieces.append(Piece(times, found.cpu()))
            a = found[-1]
    return pieces


def _without_graph(system: AugmentedSystem) -> Callable[[Tensor, Tensor], Tensor]:
    def rates(t: Tensor, state: Tensor) -> Tensor:
        with torch.no_grad():
            return system(t, state)

    return rates
