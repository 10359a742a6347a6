"""What a compiled graph depends on, and the one place where graphs are kept.

A solve looks its graphs up by a `GraphKey`. What the key does not say is an input of the graph (times, tolerances,
the values of parameters and of numbers that the dynamics refer to), or the guards of `torch.compile` look after it.
The first few sizes of a batch have graphs of their own, in which loops have a known length; later ones share one.
"""

import contextlib
import functools
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from neural_ode.problem.dynamics import GuardedDynamics
from neural_ode.problem.state import TupleState

__all__ = ["CACHE", "Bounded", "GraphKey", "Kind", "SolveKey", "clear", "describe", "graph_key"]

Kind = tuple[Any, ...]
"""The code that a function runs, with that of what it refers to; see `describe`."""


class SolveKey(NamedTuple):
    """What the graphs of a solve depend on.

    Attributes:
        dynamics: the kind of the dynamics.
        constants: numbers that they refer to and that are constants of the graph.
        params: names and shapes of the parameters that are inputs.
        method: makes the steps.
        norm: the kind of the norm of the error control.
        variant: what else tells the graphs of a function apart.
    """

    dynamics: Kind
    constants: tuple[float, ...] = ()
    params: tuple[tuple[tuple[str, ...], torch.Size], ...] = ()
    method: Any = None
    norm: Kind = ()
    variant: tuple[Any, ...] = ()


class GraphKey(NamedTuple):
    """What one graph depends on.

    Attributes:
        function: what is compiled.
        depends: on what, mostly a `SolveKey`.
        dtype, device, shape: of the state; the shape without its first dimension.
        threads: how many PyTorch uses.
        size: the first dimension, where the graph is for that one; `None` if it is variable.
    """

    function: Callable[..., Any]
    depends: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device
    shape: torch.Size
    threads: int
    size: int | None = None


def graph_key(function: Callable[..., Any], depends: tuple[Any, ...], state: Tensor) -> GraphKey:
    """The key of a function on a state like this one, compiled for what it `depends` on besides."""
    return GraphKey(function, depends, state.dtype, state.device, state.shape[1:], torch.get_num_threads())


Key = TypeVar("Key")
Value = TypeVar("Value")


class Bounded(OrderedDict[Key, Value]):
    """A dictionary that forgets what was not used for longest."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def __getitem__(self, key: Key) -> Value:
        self.move_to_end(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        if len(self) > self.size:
            del self[next(iter(self))]


class _Cache:
    """What this process has compiled and found out.

    Attributes:
        graphs: compiled functions; in place of what cannot be compiled, why.
        facts: what looking at dynamics has shown, by what it is about and their kind.
        structures: the text of modules, which takes long to make.
        sizes: of batches, by the key without a size, and whether they have graphs of their own.
    """

    def __init__(self, graphs: int, facts: int):
        self.graphs: Bounded[GraphKey, Callable[..., Any] | str] = Bounded(graphs)
        self.facts: Bounded[tuple[Any, ...], Any] = Bounded(facts)
        self.structures: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self.sizes: Bounded[GraphKey, dict[int, bool]] = Bounded(graphs)


CACHE = _Cache(graphs=256, facts=4096)


def clear() -> None:
    """Forget all that was compiled for solves, and free its memory: the next solve compiles anew."""
    CACHE.graphs.clear()
    CACHE.facts.clear()
    CACHE.structures.clear()
    CACHE.sizes.clear()


def describe(f: Any, modules: dict[int, nn.Module], seen: tuple[int, ...] = ()) -> Kind:
    """A key for the code that `f` runs; gathers the modules that it refers to."""
    if isinstance(f, nn.Module):
        modules[id(f)] = f
        if f not in CACHE.structures:
            CACHE.structures[f] = repr(f)
        return type(f), CACHE.structures[f]
    if isinstance(f, GuardedDynamics):
        return describe(f.f, modules, seen)
    if isinstance(f, functools.partial):
        return "partial", *(describe(x, modules, seen) for x in (f.func, *f.args, *f.keywords.values()))
    if isinstance(f, types.MethodType):
        return describe(f.__func__, modules, seen), describe(f.__self__, modules, seen)
    if isinstance(f, types.FunctionType):
        if id(f) in seen:  # a function that calls itself
            return (f.__code__,)
        seen = (*seen, id(f))
        cells = []
        for cell in f.__closure__ or ():
            with contextlib.suppress(ValueError):  # it is still empty
                cells.append(cell.cell_contents)
        known = f.__globals__
        cells += [known[name] for name in f.__code__.co_names if isinstance(known.get(name), nn.Module)]
        cells += [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
        return f.__code__, *(describe(x, modules, seen) for x in cells)
    if isinstance(f, TupleState):
        return (f,)
    if callable(f) and hasattr(f, "__dict__") and not isinstance(f, type) and id(f) not in seen:
        parts = [x for x in vars(f).values() if callable(x)]
        return type(f), *(describe(x, modules, (*seen, id(f))) for x in parts)
    return (type(f),)
