"""Gradients with respect to tensors of which some are computed from others.

`torch.autograd.grad` returns total derivatives: where `v` was computed from `w`, that of `w` holds what comes
through `v`. A function that hands both to autograd has to return partial derivatives, or that part counts twice.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["GraphKeeping", "ancestors", "edge_of", "gradients", "own_parts"]

Edge = tuple[Any, int]
"""A node of autograd's graph and which of its outputs is meant."""


class GraphKeeping:
    """Keeps the graphs that gradients are pulled through: parts of them may belong to what comes next.

    Weights that a hypernetwork has prepared are such parts, used by every evaluation of the dynamics. Compiled
    functions whose backward pass gives its memory away cannot be kept, and are not, once one has said so.
    """

    def __init__(self) -> None:
        self._keeps = True

    def gradients(
        self,
        results: Sequence[Tensor],
        inputs: Sequence[Tensor],
        along: Sequence[Tensor],
        create_graph: bool = False,
    ) -> list[Tensor]:
        """`torch.autograd.grad`, zero where nothing depends on anything."""
        outputs: list[Tensor] = []
        cotangents: list[Tensor] = []
        for result, cotangent in zip(results, along, strict=True):
            if result.requires_grad:
                outputs.append(result)
                cotangents.append(cotangent)
        if not outputs:
            return [torch.zeros_like(x) for x in inputs]
        how: dict[str, Any] = {"allow_unused": True, "create_graph": create_graph}
        try:
            found = torch.autograd.grad(
                outputs, inputs, cotangents, retain_graph=self._keeps or create_graph, **how
            )
        except RuntimeError as error:
            if create_graph or "donated buffers" not in str(error):
                raise
            self._keeps = False
            found = torch.autograd.grad(outputs, inputs, cotangents, retain_graph=False, **how)
        complete: list[Tensor] = []
        for gradient, x in zip(found, inputs, strict=True):
            complete.append(torch.zeros_like(x) if gradient is None else gradient)
        return complete


def gradients(
    results: Sequence[Tensor], inputs: Sequence[Tensor], along: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor]:
    """`torch.autograd.grad` once, zero where nothing depends on anything; the graph is kept if it can be."""
    return GraphKeeping().gradients(results, inputs, along, create_graph)


def own_parts(inputs: Sequence[Tensor], totals: Sequence[Tensor]) -> list[Tensor]:
    """Partial derivatives from total ones: `∂L/∂w = dL/dw - Σ_v (dv/dw)ᵀ ∂L/∂v` over the `v` computed from `w`.

    Args:
        inputs: the tensors.
        totals: the derivatives with respect to them, of their shapes.
    """
    parts = list(totals)
    if all(x.grad_fn is None for x in inputs):
        return parts
    among = [[i for i in _found_among(x, inputs) if i != own] for own, x in enumerate(inputs)]
    # What is computed from others comes before these: it has more of them.
    for number in sorted(range(len(inputs)), key=lambda i: -len(among[i])):
        if not among[number]:
            break
        from_others = [inputs[i] for i in among[number]]
        found = gradients([inputs[number]], from_others, [parts[number]], create_graph=torch.is_grad_enabled())
        for i, gradient in zip(among[number], found, strict=True):
            parts[i] = parts[i] - gradient
    return parts


def _found_among(x: Tensor, inputs: Sequence[Tensor]) -> list[int]:
    if x.grad_fn is None:
        return []
    known = {edge_of(other): i for i, other in enumerate(inputs) if other.requires_grad}
    return sorted({known[edge] for edge in ancestors(x) if edge in known})


def edge_of(x: Tensor) -> Edge:
    """How the graph refers to a tensor that requires a gradient."""
    edge = torch.autograd.graph.get_gradient_edge(x)
    return edge.node, edge.output_nr


def ancestors(x: Tensor, behind: Collection[Any] = ()) -> Iterator[Edge]:
    """What `x` was computed from; a leaf is a node with the attribute `variable`.

    Args:
        x: a tensor.
        behind: nodes that are left out, with what lies behind them.
    """
    waiting: list[Edge] = list(x.grad_fn.next_functions) if x.grad_fn is not None else []
    seen: set[Edge] = set()
    while waiting:
        edge = waiting.pop()
        if edge[0] is None or edge in seen or edge[0] in behind:
            continue
        seen.add(edge)
        yield edge
        waiting += edge[0].next_functions
