"""Single explicit Runge-Kutta steps, compiled by `torch.compile`.

A step is a pure function of tensors, so it compiles to one graph: stages, new state and error estimate. Its length
is a tensor in there, and parameters of modules are inputs, so that new steps, tolerances and parameter values
compile nothing. What cannot be compiled runs as it is.
"""

import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from neural_ode.compiled.compiler import Bounded
from neural_ode.compiled.dynamics import describe
from neural_ode.errors import NeuralODEWarning
from neural_ode.methods import ExplicitRungeKutta, Step
from neural_ode.methods.base import Carry
from neural_ode.methods.tableaus.butcher import ButcherTableau
from neural_ode.problem.dynamics import GuardedDynamics
from neural_ode.problem.state import Dynamics, real_dtype
from neural_ode.stepping.settings import SolverSettings

__all__ = ["CompiledRungeKutta", "with_compiled_steps", "with_plain_steps"]

_graphs: Bounded[tuple[Any, ...], Callable[..., Step]] = Bounded(128)
"""One compiled function for each method and kind of dynamics: PyTorch counts recompilations by code object."""

_given_up: Bounded[tuple[Any, ...], bool] = Bounded(1024)
"""Kinds that could not be compiled, and about which the user has been told."""


def with_compiled_steps(settings: SolverSettings) -> SolverSettings:
    """The settings with the compiled form of its method, where there is one."""
    if not isinstance(settings.method, ExplicitRungeKutta):
        return settings
    return replace(settings, method=CompiledRungeKutta(settings.method.tableau))


def with_plain_steps(settings: SolverSettings) -> SolverSettings:
    """The settings without compiled steps, whose derivatives cannot be differentiated again."""
    method = settings.method
    if not isinstance(method, CompiledRungeKutta):
        return settings
    return replace(settings, method=ExplicitRungeKutta(method.tableau))


class CompiledRungeKutta(ExplicitRungeKutta):
    """The same method with compiled steps.

    The first step with new dynamics, another dtype or number of dimensions takes seconds: PyTorch keeps what it
    compiled for this process, and on disk for the next.
    """

    def __init__(self, tableau: ButcherTableau):
        super().__init__(tableau)
        self._plain = ExplicitRungeKutta(tableau)

    def step(self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Carry) -> Step:
        key = (self.name, describe(f, {}), y.dtype, y.dim(), torch.is_grad_enabled())
        if key in _given_up:
            return self._plain.step(f, t, y, h, carry)
        # Without gradients to record, a GPU replays the step as one CUDA graph.
        replayed = y.device.type == "cuda" and not torch.is_grad_enabled()
        if key not in _graphs:
            _graphs[key] = _fresh(y.device.type, replayed)
        length = h if isinstance(h, Tensor) else torch.tensor(h, dtype=real_dtype(y), device=y.device)
        try:
            # The adjoint equation has products with Jacobians in its dynamics; modules count their evaluations.
            with torch._dynamo.config.patch(trace_autograd_ops=True, allow_unspec_int_on_nn_module=True):
                step = _graphs[key](self._plain, f, t, y, length, carry)
        except _compiler_errors() as error:
            _given_up[key] = True
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"compile=True: {_name(f)} cannot be compiled and runs as it is ({reason})",
                NeuralODEWarning,
                stacklevel=2,
            )
            return self._plain.step(f, t, y, h, carry)
        # The next replay writes to the same memory.
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, step) if replayed else step


def _fresh(device: str, replayed: bool) -> Callable[..., Step]:
    """A compiled step with a code object of its own."""

    def step(
        method: ExplicitRungeKutta, f: Dynamics, t: Tensor, y: Tensor, h: Tensor, carry: Tensor | None
    ) -> Step:
        return method.step(f, t, y, h, carry)

    own = types.FunctionType(step.__code__.replace(), step.__globals__, f"step_{len(_graphs)}")
    options: dict[str, Any] = {"cpp_wrapper": device == "cpu", "triton.cudagraphs": replayed}
    compiled: Callable[..., Step] = torch.compile(own, fullgraph=True, options=options)
    return compiled


def _name(f: Any) -> str:
    f = f.f if isinstance(f, GuardedDynamics) else f
    return getattr(f, "__name__", None) or type(f).__name__


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, FailOnRecompileLimitHit, CppCompileError, InvalidCxxCompiler
