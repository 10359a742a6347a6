"""Functions on tensors, compiled once for each kind of use."""

import contextlib
import copy
import functools
import itertools
import math
import types
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neural_ode.compiled.cache import CACHE, GraphKey, graph_key
from neural_ode.compiled.native import Unsupported, native_function

__all__ = ["CannotCompile", "call", "compiled_so_far", "expm1", "tanh", "while_loop"]


class CannotCompile(Exception):  # noqa: N818 (a way to say "do it yourself", which no user sees)
    """The solve has to be made by the loops in Python.

    Attributes:
        failed: the compiled solve ran and could not be finished, so there is nothing to warn of: the loop in
            Python will find the same error, and says what it is.
    """

    def __init__(self, reason: str, failed: bool = False):
        super().__init__(reason)
        self.failed = failed


def while_loop(*arguments: Any) -> Any:
    """The loop inside a graph; imported late, for it brings the compiler with it."""
    from torch._higher_order_ops.while_loop import while_loop

    loop: Any = while_loop
    return loop(*arguments)


_numbers = itertools.count()


def call(
    function: Callable[..., Any],
    depends: tuple[Any, ...],
    like: Tensor,
    *args: Any,
    fuse_products: bool = False,
    fuse_stacks: bool = False,
) -> Any:
    """Run a function compiled.

    Every key gets a code object of its own, because `torch.compile` counts the graphs of each and gives up at a
    limit. What failed once is not tried again.

    Args:
        function: what to compile; is not differentiated.
        depends: what its graph depends on besides the following, see `GraphKey`.
        like: a tensor whose dtype, device and shape behind the first dimension matter.
        args: of the function.
        fuse_products: whether products with matrices of few columns are to become part of the kernels around them.
        fuse_stacks: the same of stacked and concatenated tensors. Every entry is then computed as often as there
            are parts, which for a few numbers is less than what a part costs as a tensor of its own.

    Raises:
        CannotCompile: it failed.
    """
    key, graphs = _key(function, depends, like), CACHE.graphs
    if key not in graphs:
        graphs[key] = _compiled_later(function, key, fuse_products, fuse_stacks)
    graph = graphs[key]
    if isinstance(graph, str):
        raise CannotCompile(graph)
    before = torch._dynamo.config.specialize_float
    try:
        # Numbers are constants of the graph: as its inputs, inside a `while_loop`, they lose all but float32.
        torch._dynamo.config.specialize_float = True
        with torch.no_grad():
            return graph(*args)
    except Exception as error:
        _close_forward_level()
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        if not isinstance(error, IndexError | MemoryError):  # those are of this solve alone
            graphs[key] = reason
            if key.size is not None:
                _share(key, reason)
        raise CannotCompile(reason) from error
    finally:
        torch._dynamo.config.specialize_float = before


_SIZES = 3
"""Sizes of a batch that have graphs of their own: those of a training, its last batch, and a validation."""


def _key(function: Callable[..., Any], depends: tuple[Any, ...], like: Tensor) -> GraphKey:
    """The key of a graph for states like this one: for this size of a batch, or for all."""
    key = graph_key(function, depends, like)
    if like.device.type != "cpu":
        return key
    if key not in CACHE.sizes:
        CACHE.sizes[key] = {}
    sizes, size = CACHE.sizes[key], like.shape[0] if like.dim() else 1
    if size not in sizes:
        known = len(sizes) < _SIZES and all(own or size < other for other, own in sizes.items())
        if not known:
            return key
        sizes[size] = True
    return key._replace(size=size) if sizes[size] else key


def _share(key: GraphKey, graph: Callable[..., Any] | str) -> None:
    """Let a size of a batch, and all that have no graph of their own, have this graph."""
    assert key.size is not None
    every = key._replace(size=None)
    CACHE.sizes.setdefault(every, {})[key.size] = False
    CACHE.graphs.setdefault(every, graph)


def _compiled_later(
    function: Callable[..., Any], key: GraphKey, fuse_products: bool, fuse_stacks: bool
) -> Callable[..., Any]:
    """The function, compiled when it is called."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    own = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__)
    refused: list[bool] = []
    # PyTorch keeps backends for good, so that this one must hold nothing.
    backend = functools.partial(_backend, key.device.type == "cpu", refused, fuse_products, fuse_stacks)
    compiled: Any = torch.compile(own, fullgraph=True, backend=backend)

    def run(*args: Any) -> Any:
        found = compiled(*args)
        if key in CACHE.graphs:
            CACHE.graphs[key] = compiled
            if refused and key.size is not None:
                del CACHE.graphs[key]
                _share(key, compiled)  # the other compiler knows variable sizes
        return found

    return run


def _backend(
    on_cpu: bool,
    refused: list[bool],
    fuse_products: bool,
    fuse_stacks: bool,
    graph: torch.fx.GraphModule,
    inputs: list[Any],
) -> Any:
    """What compiles a graph; adds to `refused` where it does not become one function in C++."""
    global _compiled
    _compiled += 1
    _settle_numbers(graph)
    if on_cpu:
        with contextlib.suppress(Unsupported):
            return _native(graph, inputs)
    refused.append(True)
    return _inductor(fuse_products, fuse_stacks, graph, inputs)


def _settle_numbers(graph: torch.fx.GraphModule) -> None:
    """Say that inputs of shape () stay tensors.

    PyTorch considers those in float64 as numbers in Python, and where that comes to nothing, which it always does
    here, traces all of it a second time, unless it knows.
    """
    try:
        from torch._dynamo.symbolic_convert import TensorifyState
    except ImportError:  # no name that PyTorch has promised
        return
    for node in graph.graph.find_nodes(op="placeholder"):
        number = getattr(node.meta.get("example_value"), "item_memo", None)
        if isinstance(number, torch.SymFloat):
            TensorifyState.specialize(str(number.node._expr))


def _close_forward_level() -> None:
    """Leave forward mode, which PyTorch leaves open where tracing a function that uses it fails.

    Open, it would make every later `torch.func.jvp` of the process fail.
    """
    if forward_ad._current_level >= 0:  # that of whoever called
        return
    try:
        with forward_ad.dual_level():
            pass
    except RuntimeError:
        torch._C._exit_dual_level(level=0)


_compiled = 0


def compiled_so_far() -> int:
    """How many graphs have been compiled in this process."""
    return _compiled


def _native(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """One function in C++.

    Raises:
        Unsupported: there is something in the graph that it cannot hold.
    """
    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(
        fw_compiler=native_function, decompositions=_decompositions(), keep_inference_input_mutations=True
    )
    return backend(copy.deepcopy(graph), inputs)


def _decompositions() -> dict[Any, Any]:
    """Of operations into simpler ones."""
    from torch._inductor.decomposition import select_decomp_table

    own = {torch.ops.aten.tanh.default: tanh, torch.ops.aten.expm1.default: expm1}
    return {**select_decomp_table(), **own}


def _inductor(fuse_products: bool, fuse_stacks: bool, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """The default backend of `torch.compile`, set up for graphs of many small operations."""
    from torch._inductor.compile_fx import compile_fx

    on_cpu = all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor))
    options = {
        # The code that calls the kernels in C++ too.
        "cpp_wrapper": on_cpu,
        # Entries from which threads share a loop: to start them costs about as much as this many.
        "cpp.min_chunk_size": 8192,
        # Fused multiplication and addition, which rounds once instead of twice.
        "cpp.enable_floating_point_contract_flag": "fast",
        "force_pointwise_cat": on_cpu and fuse_stacks,
    }
    decompositions = _decompositions()
    if on_cpu and fuse_products:
        decompositions |= {torch.ops.aten.mm.default: _mm, torch.ops.aten.addmm.default: _addmm}
    return compile_fx(graph, inputs, config_patches=options, decompositions=decompositions)


_FEW = 2
"""Rows or columns up to which a matrix product is faster inside the kernels around it than in a call of its own."""


def _mm(a: Tensor, b: Tensor) -> Any:
    """A matrix product in sums and products of vectors, where one side of a matrix is short."""
    inner, columns = b.shape
    if isinstance(inner, int) and 1 <= inner <= _FEW:
        return sum((a[:, i : i + 1] * b[i : i + 1] for i in range(1, inner)), start=a[:, :1] * b[:1])
    if isinstance(columns, int) and 1 <= columns <= _FEW:
        return torch.stack([(a * b[:, j]).sum(1) for j in range(columns)], dim=1)
    return NotImplemented


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _mm(a, b) if alpha == beta == 1 else NotImplemented
    return product if product is NotImplemented else product + bias


def tanh(x: Tensor) -> Any:
    """tanh in float32, to 3 units in the last place; in a compiled loop half the time of the exact one.

    With `x/2 P/Q` the eighth convergent of Lambert's continued fraction for `tanh(x/2)` (Lambert 1768; Abramowitz &
    Stegun 4.5.70) it is `x P Q / (x² P² / 4 + Q²)`, the formula for twice the argument.
    """
    if x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-9.2, 9.2)  # where it is 1 in float32
    square = x * x
    numerators, denominators = _LAMBERT
    p, q = x * _polynomial(numerators, square), _polynomial(denominators, square)
    return p * q / (0.25 * p * p + q * q)


def expm1(x: Tensor) -> Any:
    """`exp(x) - 1` in float32, to 2 units in the last place; in a compiled loop a third of the exact one's time.

    Around zero, where the difference would lose digits, it is the Taylor polynomial. ELU is made of it.
    """
    if x.dtype != torch.float32:
        return NotImplemented
    near = x * _polynomial(_TAYLOR, x)
    return torch.where(x.abs() < 0.25, near, x.exp() - 1)


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _lambert(depth: int) -> tuple[list[float], list[float]]:
    """Coefficients of `P(x²)` and `Q(x²)` in `tanh(x/2) ≈ x/2 P/Q`, `Q/P = 1 + u/(3 + u/(5 + …))`, `u = x²/4`."""
    upper, lower = [Fraction(2 * depth - 1)], [Fraction(1)]
    for k in range(2 * depth - 3, 0, -2):
        rest = [Fraction(0), *lower]
        size = max(len(upper), len(rest))
        padded = [[*row, *[Fraction(0)] * (size - len(row))] for row in (upper, rest)]
        upper, lower = [k * a + b for a, b in zip(*padded, strict=True)], upper
    p, q = ([float(c / upper[0] / 4**i) for i, c in enumerate(row)] for row in (lower, upper))
    return p, q


_LAMBERT = _lambert(8)

_TAYLOR = [1 / math.factorial(k) for k in range(1, 8)]
"""Of `(exp(x) - 1) / x`; the rest is below half a unit in the last place for `|x| < 0.25`."""
