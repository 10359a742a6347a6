"""Single explicit Runge-Kutta steps, compiled by `torch.compile`.

A step is a pure function of tensors, so it compiles to one graph: stages, new state and error estimate. Its length
is a tensor in there, and parameters of modules are inputs, so that new steps, tolerances and parameter values
compile nothing. What cannot be compiled runs as it is.
"""

import types
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from neural_ode.compiled.cache import CACHE, SolveKey, describe, graph_key
from neural_ode.compiled.plan import LARGE
from neural_ode.errors import NeuralODEWarning
from neural_ode.methods import ExplicitRungeKutta, Step
from neural_ode.methods.base import Carry
from neural_ode.problem.dynamics import GuardedDynamics
from neural_ode.problem.state import Dynamics, real_dtype
from neural_ode.solution import Statistics
from neural_ode.stepping.settings import SolverSettings

__all__ = ["CompiledRungeKutta", "with_compiled_steps", "with_compiled_steps_again", "with_plain_steps"]


def with_compiled_steps(settings: SolverSettings, stats: Statistics, reason: str | None) -> SolverSettings:
    """The settings with the compiled form of its method, where there is one.

    Args:
        settings: how to solve.
        stats: are told how the solve ran.
        reason: why the solve is not compiled as a whole.
    """
    stats.not_compiled = reason
    method = settings.method
    if isinstance(method, CompiledRungeKutta):
        method = method.plain
    if not isinstance(method, ExplicitRungeKutta):
        stats.not_compiled = f"{method.name} is not an explicit Runge-Kutta method"
        return settings
    return replace(settings, method=CompiledRungeKutta(method, stats))


def with_compiled_steps_again(settings: SolverSettings, stats: Statistics) -> SolverSettings:
    """The settings for steps that are made again in the backward pass, whose statistics these are."""
    method = settings.method
    if not isinstance(method, CompiledRungeKutta):
        return settings
    stats.not_compiled = method.stats.not_compiled
    return replace(settings, method=CompiledRungeKutta(method.plain, stats))


def with_plain_steps(settings: SolverSettings) -> SolverSettings:
    """The settings without compiled steps, whose derivatives cannot be differentiated again."""
    method = settings.method
    return replace(settings, method=method.plain) if isinstance(method, CompiledRungeKutta) else settings


class CompiledRungeKutta(ExplicitRungeKutta):
    """The same method with compiled steps.

    The first step with new dynamics, another dtype or number of dimensions takes seconds: PyTorch keeps what it
    compiled for this process, and on disk for the next.

    Attributes:
        plain: the method.
        stats: are told whether steps could be compiled.
    """

    def __init__(self, plain: ExplicitRungeKutta, stats: Statistics):
        vars(self).update(vars(plain))
        self.plain, self.stats = plain, stats

    def step(self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Carry) -> Step:
        """The compiled step where there is one; see `Method.step`."""
        variant, modules = (y.dim(), torch.is_grad_enabled()), dict[int, nn.Module]()
        key = graph_key(_step, SolveKey(describe(f, modules), method=self.plain, variant=variant), y)
        if y.device.type == "cpu" and y.numel() > LARGE and _normalises_groups(modules.values()):
            reason = "f has group norms and a large state, which take longer compiled"
            return self._given_up(reason, f, t, y, h, carry)
        # Without gradients to record, a GPU replays the step as one CUDA graph.
        replayed = y.device.type == "cuda" and not torch.is_grad_enabled()
        if key not in CACHE.graphs:
            CACHE.graphs[key] = _fresh(y.device.type, replayed)
        graph = CACHE.graphs[key]
        if isinstance(graph, str):
            return self._given_up(graph, f, t, y, h, carry)
        length = h if isinstance(h, Tensor) else torch.tensor(h, dtype=real_dtype(y), device=y.device)
        try:
            # The adjoint equation has products with Jacobians in its dynamics; modules count their evaluations.
            with torch._dynamo.config.patch(trace_autograd_ops=True, allow_unspec_int_on_nn_module=True):
                step: Step = graph(self.plain, f, t, y, length, carry)
        except _compiler_errors() as error:
            CACHE.graphs[key] = reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"compile=True: {_name(f)} cannot be compiled and runs as it is ({reason})",
                NeuralODEWarning,
                stacklevel=2,
            )
            return self._given_up(reason, f, t, y, h, carry)
        self.stats.compiled = "steps"
        # The next replay writes to the same memory.
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, step) if replayed else step

    def _given_up(self, reason: str, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Carry) -> Step:
        self.stats.compiled, self.stats.not_compiled = None, reason
        return self.plain.step(f, t, y, h, carry)


def _step(method: ExplicitRungeKutta, f: Dynamics, t: Tensor, y: Tensor, h: Tensor, carry: Carry) -> Step:
    return method.step(f, t, y, h, carry)


def _fresh(device: str, replayed: bool) -> Callable[..., Step]:
    """A compiled step with a code object of its own."""
    own = types.FunctionType(_step.__code__.replace(), _step.__globals__, "step")
    options: dict[str, Any] = {"cpp_wrapper": device == "cpu", "triton.cudagraphs": replayed}
    compiled: Callable[..., Step] = torch.compile(own, fullgraph=True, options=options)
    return compiled


def _normalises_groups(modules: Iterable[nn.Module]) -> bool:
    """PyTorch's kernels for that are faster than what its compiler makes of the formula."""
    return any(isinstance(part, nn.GroupNorm) for module in modules for part in module.modules())


def _name(f: Any) -> str:
    f = f.f if isinstance(f, GuardedDynamics) else f
    return getattr(f, "__name__", None) or type(f).__name__


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, FailOnRecompileLimitHit, CppCompileError, InvalidCxxCompiler
