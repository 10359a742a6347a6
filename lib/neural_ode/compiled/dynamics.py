"""The user's function in the form that graphs need: parameters are inputs, and what it is has a key."""

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from neural_ode.adaptive import check_start
from neural_ode.compiled.graphs import CannotCompile
from neural_ode.errors import SolverError
from neural_ode.state import Dynamics, TupleState

__all__ = ["LiftedDynamics", "depends_on_parameters", "describe", "with_parameters"]


class LiftedDynamics(nn.Module):
    """Dynamics as a function of time, state and parameters.

    Attributes:
        params: those that get gradients: by default all that require them, of the modules that `f` is or refers to.
        key: what the graph depends on, up to what the guards of `torch.compile` look after.
    """

    def __init__(self, f: Dynamics, params: tuple[Tensor, ...] | None = None):
        """
        Raises:
            CannotCompile: `params` holds tensors that are no parameters of a module.
        """
        super().__init__()
        found: dict[int, nn.Module] = {}
        self.key = describe(f, found)
        self.parts = nn.ModuleList(found.values())
        self.f = None if isinstance(f, nn.Module) else f
        named = {id(p): (name, p) for name, p in self.named_parameters()} if params != () else {}
        if params is None:
            params = tuple(p for _, p in named.values() if p.requires_grad)
        if any(id(p) not in named for p in params):
            raise CannotCompile("params holds tensors that are no parameters of a module that f uses")
        self.names = [named[id(p)][0] for p in params]
        self.params = params

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Shapes as for `f`."""
        slope: Tensor = self.parts[0](t, y) if self.f is None else self.f(t, y)
        return slope


_structures: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def describe(f: Any, modules: dict[int, nn.Module], seen: tuple[int, ...] = ()) -> tuple[Any, ...]:
    """A key for the code that `f` runs; gathers the modules that it refers to."""
    if isinstance(f, nn.Module):
        modules[id(f)] = f
        if f not in _structures:
            _structures[f] = repr(f)
        return type(f), _structures[f]
    if isinstance(f, functools.partial):
        return "partial", *(describe(x, modules, seen) for x in (f.func, *f.args, *f.keywords.values()))
    if isinstance(f, types.MethodType):
        return describe(f.__func__, modules, seen), describe(f.__self__, modules, seen)
    if isinstance(f, types.FunctionType):
        if id(f) in seen:  # a function that calls itself
            return (f.__code__,)
        cells = []
        for cell in f.__closure__ or ():
            with contextlib.suppress(ValueError):  # it is still empty
                cells.append(cell.cell_contents)
        known = f.__globals__
        cells += [known[name] for name in f.__code__.co_names if isinstance(known.get(name), nn.Module)]
        return f.__code__, *(describe(x, modules, (*seen, id(f))) for x in cells)
    if isinstance(f, TupleState):
        return (f,)
    return (type(f),)


def with_parameters(dynamics: LiftedDynamics, params: tuple[Tensor, ...]) -> Dynamics:
    """The dynamics with other values of the parameters."""
    if not params:
        return dynamics
    values = dict(zip(dynamics.names, params, strict=True))
    return lambda t, y: torch.func.functional_call(dynamics, values, (t, y))


def depends_on_parameters(dynamics: LiftedDynamics, time: Tensor, y0: Tensor, grad: bool) -> bool:
    """Evaluate `f` once, at the start, and look whether it depends on parameters and fits the state.

    Raises:
        CannotCompile: it depends on other tensors that require gradients, which the backward pass would miss, it
            draws random numbers, it does not fit the state, or it fails.
    """
    rng = torch.get_rng_state()
    # The graph is looked at and dropped: hooks that measure what is kept for a backward pass are not to see it.
    with torch.set_grad_enabled(grad), torch.autograd.graph.saved_tensors_hooks(_same, _same):
        fresh = tuple(p.detach().requires_grad_() for p in dynamics.params) if grad else ()
        try:
            slope = with_parameters(dynamics, fresh)(time, y0.detach())
        except RuntimeError as error:  # torch.func.vjp, for one, suffers no such hooks
            raise CannotCompile(f"f cannot be looked at: {error}") from error
    if not torch.equal(rng, torch.get_rng_state()):
        raise CannotCompile("f draws random numbers")
    try:
        check_start(slope, y0, float(time.reshape(-1)[0]))
    except SolverError as error:
        raise CannotCompile(str(error), failed=True) from error
    leaves = {id(leaf) for leaf in _leaves(slope)}
    if not leaves <= {id(p) for p in fresh}:
        raise CannotCompile(
            "f uses tensors that require gradients and are no parameters of a module: make f a torch.nn.Module"
        )
    return bool(leaves)


def _same(x: Tensor) -> Tensor:
    return x


def _leaves(x: Tensor) -> Iterator[Tensor]:
    """The leaves of the graph of autograd that `x` depends on."""
    waiting: list[Any] = [x.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]
