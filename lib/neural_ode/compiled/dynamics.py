"""The user's function in the form that graphs need: parameters are inputs, and what it is has a key."""

import contextlib
import functools
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from neural_ode.compiled.compiler import Bounded, CannotCompile, compiled_so_far
from neural_ode.compiled.numbers import constants_of, numbers_of, with_numbers
from neural_ode.errors import InvalidArgumentError, NeuralODEWarning, SolverError
from neural_ode.problem.captured import captured
from neural_ode.problem.dynamics import GuardedDynamics
from neural_ode.problem.state import Dynamics, TupleState
from neural_ode.stepping.adaptive import check_start

__all__ = [
    "LiftedDynamics",
    "check_no_hidden_dependence",
    "compiling",
    "depends_on_parameters",
    "describe",
    "with_parameters",
]

Found = TypeVar("Found")


class LiftedDynamics(nn.Module):
    """Dynamics as a function of time, state and parameters.

    Attributes:
        params: those that get gradients: by default all that require them, of the modules that `f` is or refers to.
        kind: the code that `f` runs.
        key: what the graph depends on, up to what the guards of `torch.compile` look after.
        lifts: whether numbers that `f` refers to are inputs.
    """

    def __init__(self, f: Dynamics, y0: Tensor, params: tuple[Tensor, ...] | None = None):
        """
        Args:
            f: the dynamics.
            y0: a state, on whose device numbers that `f` refers to become inputs.
            params: what gets gradients.

        Raises:
            CannotCompile: `params` holds tensors that are no parameters of a module.
        """
        super().__init__()
        if isinstance(f, GuardedDynamics):
            f = f.f  # a graph keeps apart what it computes
        found: dict[int, nn.Module] = {}
        self.kind = self.key = describe(f, found)
        if self.kind in _constants:
            self.key = (*self.kind, numbers_of(f))
            self.lifts = False
        else:
            # In double precision, in which numbers are computed with; beside a state they take its dtype.
            number = functools.partial(torch.tensor, dtype=torch.float64, device=y0.device)
            lifted = with_numbers(f, number, {})
            self.lifts = lifted is not f
            if self.lifts:
                f, found = lifted, {}
                describe(f, found)
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
        t = t.to(y.dtype)
        slope: Tensor = self.parts[0](t, y) if self.f is None else self.f(t, y)
        return slope


_constants: Bounded[tuple[Any, ...], bool] = Bounded(1024)
"""Kinds of dynamics whose numbers cannot be inputs."""

_compiled_for: Bounded[tuple[Any, ...], set[tuple[float, ...]]] = Bounded(1024)
"""Kinds of dynamics, with the numbers that they had when something was compiled."""

_MANY = 3


def compiling(
    f: Dynamics, y0: Tensor, params: tuple[Tensor, ...] | None, run: Callable[[LiftedDynamics], Found]
) -> Found:
    """`run(dynamics)`, where the graph cannot have the numbers of `f` as inputs again with these as constants.

    Raises:
        CannotCompile: neither can be done.
    """
    before = compiled_so_far()
    dynamics = LiftedDynamics(f, y0, params)
    try:
        try:
            return run(dynamics)
        except CannotCompile as error:
            if error.failed or not dynamics.lifts:
                raise
            _constants[dynamics.kind] = True
        return run(LiftedDynamics(f, y0, params))
    finally:
        if compiled_so_far() > before:
            _warn_of_many(dynamics.kind, f)


def _warn_of_many(kind: tuple[Any, ...], f: Any) -> None:
    """Tell, once, that numbers that `f` refers to are constants of graphs."""
    f = f.f if isinstance(f, GuardedDynamics) else f
    numbers = constants_of(f)
    seen = _compiled_for.get(kind, set())
    if not numbers or len(seen) == _MANY:
        return
    _compiled_for[kind] = seen | {numbers}
    if len(_compiled_for[kind]) == _MANY:
        text = (
            f"compile=True: {getattr(f, '__name__', type(f).__name__)} has been compiled for {_MANY} values of the "
            f"numbers that it uses, now {numbers}, which takes long: make them tensors of shape ()"
        )
        warnings.warn(text, NeuralODEWarning, stacklevel=7)


_structures: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def describe(f: Any, modules: dict[int, nn.Module], seen: tuple[int, ...] = ()) -> tuple[Any, ...]:
    """A key for the code that `f` runs; gathers the modules that it refers to."""
    if isinstance(f, nn.Module):
        modules[id(f)] = f
        if f not in _structures:
            _structures[f] = repr(f)
        return type(f), _structures[f]
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
            draws random numbers, it writes into its arguments, it does not fit the state, or it fails.
    """
    rng = torch.get_rng_state()
    state = y0.detach().clone()
    before = None if state.is_inference() else state._version
    # The graph is looked at and dropped: hooks that measure what is kept for a backward pass are not to see it.
    with torch.set_grad_enabled(grad), torch.autograd.graph.saved_tensors_hooks(_same, _same):
        fresh = tuple(p.detach().requires_grad_() for p in dynamics.params) if grad else ()
        # Some operations take numbers where these are tensors now; torch.func.vjp, for one, suffers no such hooks.
        try:
            slope = with_parameters(dynamics, fresh)(time, state)
        except Exception as error:
            if not dynamics.lifts and not isinstance(error, RuntimeError):
                raise
            raise CannotCompile(f"f cannot be looked at: {error}") from error
    if not torch.equal(rng, torch.get_rng_state()):
        raise CannotCompile("f draws random numbers")
    if before is not None and state._version != before:
        raise CannotCompile("f writes into its arguments")
    try:
        check_start(slope, y0, float(time.reshape(-1)[0]))
    except InvalidArgumentError as error:
        if dynamics.lifts:  # as numbers they may leave the dtype as it is
            raise CannotCompile(str(error)) from error
        raise
    except SolverError as error:
        raise CannotCompile(str(error), failed=True) from error
    leaves = {id(leaf) for leaf in _leaves(slope)}
    if not leaves <= {id(p) for p in fresh}:
        raise CannotCompile(
            "f uses tensors that require gradients and are no parameters of a module: make f a torch.nn.Module"
        )
    return bool(leaves)


_inspected: Bounded[tuple[Any, ...], bool] = Bounded(1024)
"""Kinds of dynamics that have been seen to know their parameters as such."""


def check_no_hidden_dependence(dynamics: LiftedDynamics, f: Dynamics, time: Tensor, y: Tensor) -> None:
    """Look whether `f` knows its parameters by other ways than as such.

    It is evaluated once where it is seen for the first time, and where it refers to tensors that require gradients
    and are no parameters.

    Raises:
        CannotCompile: it uses a tensor that was computed from them before the solve, whose part in their gradient
            would be missed.
    """
    known = {id(p) for p in dynamics.parameters()}
    seen = dynamics.kind in _inspected and all(id(x) in known for x in captured(f).values())
    if not dynamics.params or seen:
        return
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
        fresh = tuple(p.detach().requires_grad_() for p in dynamics.params)
        try:
            slope = with_parameters(dynamics, fresh)(time, y.detach().clone())
        except RuntimeError as error:
            raise CannotCompile(f"f cannot be looked at: {error}") from error
    if {id(leaf) for leaf in _leaves(slope)} & {id(p) for p in dynamics.params}:
        raise CannotCompile("f uses tensors that were computed from its parameters before the solve")
    _inspected[dynamics.kind] = True


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
