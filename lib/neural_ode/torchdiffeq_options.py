"""What users of torchdiffeq pass, as `solve` takes it: methods, options, callbacks, norms and dynamics."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from neural_ode.control.controllers import IntegralController
from neural_ode.errors import InvalidArgumentError, NeuralODEWarning, nearest
from neural_ode.methods import BlackBox, Method, get_method
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.layout import StateLayout
from neural_ode.problem.state import State

__all__ = ["Func", "adjoint_norm", "lenient", "solver_keywords"]

Func = Callable[[Tensor, Any], Any]

_ALIASES = {"fixed_adams": "implicit_adams"}
_CONTROL = ("safety", "ifactor", "dfactor")
_ADAPTIVE = {
    *("first_step", "min_step", "max_step", "max_num_steps", "step_t", "jump_t", "norm", "dtype"),
    *_CONTROL,
}
_FIXED = {"step_size", "grid_constructor", "interp", "perturb", "norm"}
_RENAMED = {"max_num_steps": "max_steps", "interp": "interpolation"}
_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


def solver_keywords(
    func: Func, layout: StateLayout, t: Tensor, method: str, options: dict[str, Any] | None, suffix: str = ""
) -> dict[str, Any]:
    """The method, the options and the callbacks of torchdiffeq as keywords of `solve`."""
    chosen = get_method(_ALIASES.get(method, method))
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if isinstance(chosen, BlackBox):
        known = {"norm"}
    else:
        known = _ADAPTIVE if chosen.adaptive else _FIXED
        known = known | ({"max_iters"} if chosen.name == "explicit_adams" else set())
    for name in given.keys() - known - chosen.options:
        text = f"option {name!r} has no effect with method {method!r}{nearest(name, known | chosen.options)}"
        warnings.warn(text, NeuralODEWarning, stacklevel=4)
        del given[name]
    own = {name: given.pop(name) for name in chosen.options & given.keys()}
    keywords: dict[str, Any] = {"method": chosen.configured(**own) if own else chosen}
    given.pop("dtype", None)
    given.pop("max_iters", None)  # torchdiffeq's explicit_adams takes it, and does not iterate either
    if isinstance(chosen, BlackBox):
        given.pop("norm", None)
    control = {name: given.pop(name) for name in _CONTROL if name in given}
    if control:
        keywords["controller"] = IntegralController(**control)
    constructor = given.pop("grid_constructor", None)
    if constructor is not None:
        f = layout.dynamics(func)
        keywords["grid"] = lambda times: constructor(f, layout.y0, times.to(layout.y0.device, t.dtype))
    calls = {name: getattr(func, name + suffix, None) for name in _CALLBACKS}
    adaptive = isinstance(chosen, Method) and chosen.adaptive
    possible = _CALLBACKS if adaptive else _CALLBACKS[:1] if isinstance(chosen, Method) else ()
    for name, call in calls.items():
        if call is not None and name not in possible:
            text = f"callback {name + suffix!r} is never called with method {method!r}"
            warnings.warn(text, NeuralODEWarning, stacklevel=4)
    keywords["callbacks"] = Callbacks(*(calls[name] for name in _CALLBACKS))
    return keywords | {_RENAMED.get(name, name): value for name, value in given.items()}


def lenient(func: Func, broadcasts: bool = True) -> Func:
    """`func` with the derivative brought to the shape and real dtype of the state where torchdiffeq does so.

    There, dimensions of length 1 may be missing or too many, and on fixed grids a derivative broadcasts. One of
    shape () does not: it comes from arguments in the wrong order.
    """
    if not callable(func):
        raise InvalidArgumentError(f"func must be callable as func(t, y), got {type(func).__name__}")

    def fitted(slope: Any, y: Tensor) -> Any:
        if not isinstance(slope, Tensor) or (slope.shape == y.shape and slope.dtype == y.dtype):
            return slope
        if slope.dtype != y.dtype and (y.is_complex() or not slope.is_complex()):
            slope = slope.to(y.dtype)
        if slope.shape == y.shape:
            return slope
        if slope.squeeze().shape == y.squeeze().shape:
            return slope.reshape(y.shape)
        if broadcasts and 0 < slope.dim() <= y.dim():
            lengths = zip(reversed(slope.shape), reversed(y.shape), strict=False)
            if all(own in (1, length) for own, length in lengths):
                return slope.expand(y.shape)
        return slope  # which the solver will say does not fit

    def fitting(t: Tensor, y: Any) -> Any:
        slope = func(t, y)
        if isinstance(y, Tensor):
            return fitted(slope, y)
        if isinstance(slope, Iterable) and not isinstance(slope, Tensor):
            parts = tuple(slope)
            if len(parts) == len(y):
                return tuple(fitted(part, y_part) for part, y_part in zip(parts, y, strict=True))
        return slope

    # Where to look for the parameters; types do not know that functions have attributes.
    fitting.__wrapped__ = func  # type: ignore[attr-defined]
    return fitting


def adjoint_norm(norm: Any) -> Any:
    """The norm of torchdiffeq's adjoint as one of `Backsolve`."""
    if norm is None or not callable(norm):
        return norm

    def own(z: State, a: State, gradients: tuple[Tensor, ...]) -> Tensor:
        parts = [*(z if isinstance(z, tuple) else (z,)), *(a if isinstance(a, tuple) else (a,)), *gradients]
        size: Tensor = norm((parts[0].new_zeros(()).abs(), *parts))
        return size

    return own
