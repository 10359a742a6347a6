"""The system of the adjoint method, `[z, a, ∂L/∂θ]` as one vector: its layout, its dynamics and its jumps.

Algorithm 1 of Chen et al. (2018). The loops in Python solve it, and a graph does: these differ in how they find
products of a vector with Jacobians.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["AdjointEquation"]


class AdjointEquation:
    """The adjoint equation beside the dynamics, packed into one vector of the state's dtype.

    Where every row of a batch has steps of its own, a vector for each row.

    Attributes:
        dtype: of the vector.
        leading: the dimensions of the state that are kept.
        shapes, sizes: of the parts, without these.
        states: how many parts are shaped like the state: `z` and `a`, or `a` alone.
        params: whose gradients are parts too.
        watch: called with what each evaluation returns, with `f` there and `a`; or `None`.
    """

    states = 2
    watch: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def __init__(self, y: Tensor, params: Sequence[Tensor], leading: int = 0):
        """
        Args:
            y: a state.
            params: the parameters.
            leading: how many dimensions of `y` are kept, one vector for each of their entries.
        """
        self.dtype, self.params = y.dtype, tuple(params)
        self.leading, state = y.shape[:leading], y.shape[leading:]
        # A complex gradient beside a real state is kept as pairs of real numbers.
        self.as_pairs = [p.is_complex() and not y.is_complex() for p in params]
        self.converts = any(p.dtype != y.dtype for p in params)
        pairs = zip(params, self.as_pairs, strict=True)
        parts = [torch.Size((*p.shape, 2)) if as_pairs else p.shape for p, as_pairs in pairs]
        self.shapes = [*(state,) * self.states, *parts]
        self.sizes = [shape.numel() for shape in self.shapes]
        self._flat = [torch.Size((*self.leading, size)) for size in self.sizes]
        self._whole = [self.leading + shape for shape in self.shapes]

    @abstractmethod
    def products(self, t: Tensor, z: Tensor, vector: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """`f(t, z)`, and the products of a vector with its derivatives by `z` and each of the parameters."""

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        """`d/dt [z, a, ∂L/∂θ] = [f, -aᵀ ∂f/∂z, -aᵀ ∂f/∂θ]`."""
        z, a = self.states_at(t, state)
        slope, (by_z, *by_params) = self.products(t, z, -a)
        rates = self.pack(slope, by_z, by_params)
        if self.watch is not None:
            self.watch(rates, slope, a)
        return rates

    def states_at(self, t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The parts `z` and `a` at the time `t`."""
        z, a, *_ = torch.split_with_sizes(state, self.sizes, -1)
        return z.reshape(self._whole[0]), a.reshape(self._whole[0])

    def start(self, z: Tensor, a: Tensor) -> Tensor:
        """Where the solve begins, at the last observation: `∂L/∂θ` is zero."""
        return self.pack(z, a, [torch.zeros_like(p) for p in self.params])

    def jumped(self, state: Tensor, z: Tensor, grad_z: Tensor) -> Tensor:
        """Behind an observation: the adjoint jumps by `∂L/∂z(t_i)` (figure 2 of the paper), and `z` is known."""
        return self.pack(z, self.adjoint(state) + grad_z, self.gradients(state))

    def pack(self, z: Tensor, a: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """One vector of them, in the dtype of the state; `z` is left out where it is no part."""
        parts = (z, a, *gradients)[-self.states - len(gradients) :]
        if self.converts:
            pairs = (*(False,) * self.states, *self.as_pairs)
            real = [torch.view_as_real(x) if p else x for x, p in zip(parts, pairs, strict=True)]
            parts = tuple(x.to(self.dtype) for x in real)
        return torch.cat(list(map(torch.reshape, parts, self._flat)), dim=-1)

    def unpack(self, state: Tensor) -> list[Tensor]:
        """The parts, gradients as they are packed."""
        # A single row comes without the leading dimensions.
        shapes = self._whole if state.dim() > len(self.leading) else self.shapes
        return list(map(torch.reshape, torch.split_with_sizes(state, self.sizes, -1), shapes))

    def adjoint(self, state: Tensor) -> Tensor:
        """The part `a`."""
        return self.unpack(state)[self.states - 1]

    def gradients(self, state: Tensor) -> list[Tensor]:
        """The part `∂L/∂θ`, in the dtypes of the parameters."""
        parts = self.unpack(state)[self.states :]
        if not self.converts:
            return parts
        found = []
        for g, p, as_pairs in zip(parts, self.params, self.as_pairs, strict=True):
            if as_pairs:
                g = torch.view_as_complex(g.contiguous())
            found.append((g.real if g.is_complex() and not p.is_complex() else g).to(p.dtype))
        return found
