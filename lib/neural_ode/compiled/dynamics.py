"""The user's function in the form that graphs need: parameters are inputs, and what it is has a key."""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from neural_ode.compiled.cache import CACHE, Kind, SolveKey, describe
from neural_ode.compiled.compiler import CannotCompile, compiled_so_far
from neural_ode.compiled.numbers import constants_of, numbers_of, with_numbers
from neural_ode.errors import InvalidArgumentError, NeuralODEWarning, SolverError
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.problem.captured import captured
from neural_ode.problem.dynamics import GuardedDynamics
from neural_ode.problem.state import Dynamics
from neural_ode.stepping.adaptive import check_start

__all__ = [
    "LiftedDynamics",
    "check_no_hidden_dependence",
    "compiling",
    "depends_on_parameters",
    "with_parameters",
]

Found = TypeVar("Found")


class LiftedDynamics(nn.Module):
    """Dynamics as a function of time, state and parameters.

    Attributes:
        params: those that get gradients: by default all that require them, of the modules that `f` is or refers to.
        slots: of each of them, the names under which modules hold it: several where weights are tied.
        kind: the code that `f` runs.
        constants: numbers that `f` refers to, where they are constants of the graph.
        lifts: whether numbers that `f` refers to are inputs.
        on_cpu: whether states are in memory.
    """

    params: tuple[Tensor, ...]
    slots: list[tuple[str, ...]]
    kind: Kind
    constants: tuple[float, ...]
    lifts: bool
    on_cpu: bool
    f: Dynamics | None

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
        kind, lifts = describe(f, found), False
        constants: tuple[float, ...] = ()
        if (_CONSTANTS, kind) in CACHE.facts:
            constants = numbers_of(f)
        else:
            # In double precision, in which numbers are computed with; beside a state they take its dtype.
            number = functools.partial(torch.tensor, dtype=torch.float64, device=y0.device)
            lifted = with_numbers(f, number, {})
            lifts = lifted is not f
            if lifts:
                f, found = lifted, {}
                describe(f, found)
        self.parts = nn.ModuleList(found.values())
        slots = _slots(self) if params != () else {}
        if params is None:
            params = tuple(p for p in self.parameters() if p.requires_grad)
        if any(id(p) not in slots for p in params):
            raise CannotCompile("params holds tensors that are no parameters of a module that f uses")
        # Past `Module.__setattr__`, which takes longer than all of a small solve.
        vars(self).update(
            kind=kind,
            constants=constants,
            lifts=lifts,
            f=None if isinstance(f, nn.Module) else f,
            slots=[slots[id(p)] for p in params],
            params=params,
            on_cpu=y0.device.type == "cpu",
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Shapes as for `f`."""
        t = t.to(y.dtype)
        slope: Tensor = self.parts[0](t, y) if self.f is None else self.f(t, y)
        return slope

    def key(self, method: ExplicitRungeKutta, norm: Callable[..., Tensor] | None = None, *variant: Any) -> SolveKey:
        """What graphs depend on in which the parameters are no inputs, see `SolveKey`."""
        kind = () if norm is None else describe(norm, {})
        return SolveKey(self.kind, self.constants, method=method, norm=kind, variant=variant)

    def key_with_parameters(
        self, method: ExplicitRungeKutta, norm: Callable[..., Tensor] | None = None, *variant: Any
    ) -> SolveKey:
        """The same of graphs in which they are."""
        shapes = tuple((slots, p.shape) for slots, p in zip(self.slots, self.params, strict=True))
        return self.key(method, norm, *variant)._replace(params=shapes)


# Facts about kinds of dynamics.
_CONSTANTS = "their numbers cannot be inputs"
_COMPILED_FOR = "the numbers that they had when something was compiled"
_INSPECTED = "they know their parameters as such"

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
            CACHE.facts[_CONSTANTS, dynamics.kind] = True
        return run(LiftedDynamics(f, y0, params))
    finally:
        if compiled_so_far() > before:
            _warn_of_many(dynamics.kind, f)


def _warn_of_many(kind: tuple[Any, ...], f: Any) -> None:
    """Tell, once, that numbers that `f` refers to are constants of graphs."""
    f = f.f if isinstance(f, GuardedDynamics) else f
    numbers = constants_of(f)
    seen: set[tuple[float, ...]] = CACHE.facts.get((_COMPILED_FOR, kind), set())
    if not numbers or len(seen) == _MANY:
        return
    seen = seen | {numbers}
    CACHE.facts[_COMPILED_FOR, kind] = seen
    if len(seen) == _MANY:
        text = (
            f"compile=True: {getattr(f, '__name__', type(f).__name__)} has been compiled for {_MANY} values of the "
            f"numbers that it uses, now {numbers}, which takes long: make them tensors of shape ()"
        )
        warnings.warn(text, NeuralODEWarning, stacklevel=7)


def with_parameters(dynamics: LiftedDynamics, params: tuple[Tensor, ...]) -> Dynamics:
    """The dynamics with other values of the parameters."""
    if not params:
        return dynamics
    values = {slot: p for slots, p in zip(dynamics.slots, params, strict=True) for slot in slots}
    # Left to PyTorch (`tie_weights`), a module with two names would not get its own tensor back.
    return lambda t, y: torch.func.functional_call(dynamics, values, (t, y), tie_weights=False)


def _slots(module: nn.Module) -> dict[int, tuple[str, ...]]:
    """By identity of each parameter, the names of where it is held: one for each module that has it."""
    found: dict[int, tuple[str, ...]] = {}
    for prefix, part in module.named_modules():
        for name, p in part.named_parameters(prefix, recurse=False, remove_duplicate=False):
            found[id(p)] = (*found.get(id(p), ()), name)
    return found


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


def check_no_hidden_dependence(dynamics: LiftedDynamics, f: Dynamics, time: Tensor, y: Tensor) -> None:
    """Look whether `f` knows its parameters by other ways than as such.

    It is evaluated once where it is seen for the first time, and where it refers to tensors that require gradients
    and are no parameters.

    Raises:
        CannotCompile: it uses a tensor that was computed from them before the solve, whose part in their gradient
            would be missed.
    """
    known = {id(p) for p in dynamics.parameters()}
    seen = (_INSPECTED, dynamics.kind) in CACHE.facts and all(id(x) in known for x in captured(f).values())
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
    CACHE.facts[_INSPECTED, dynamics.kind] = True


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
