"""Graphs of few numbers as one function in C++.

PyTorch's own compiler makes a kernel of every few operations, and code that calls them: each call takes memory for
its results, wrapped as tensors. For a state of two numbers that is some hundred times the arithmetic. Here all of a
graph, its loops too, becomes one function whose values are local variables.

* `formulas`: operations on single entries, in C++.
* `scope`: memory, and statements put together in loops; `sums`: sums and products in an order that pays.
* `operations`: PyTorch's operations as such statements; `program`: a graph of them, with its loops.
* `function`: the function built, loaded and called.
"""

from neural_ode.compiled.native.function import native_function
from neural_ode.compiled.native.scope import Unsupported

__all__ = ["Unsupported", "native_function"]
