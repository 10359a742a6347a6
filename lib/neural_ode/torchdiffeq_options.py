"""What users of torchdiffeq pass, as `solve` takes it: methods, options, callbacks, norms and dynamics."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from neural_ode.control.controllers import IntegralController
from neural_ode.errors import InvalidArgumentError, NeuralODEWarning, nearest
from neural_ode.methods import BlackBox, Method, get_method
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.layout import StateLayout
from neural_ode.problem.state import State

__all__ = ["Func", "NamedMethod", "adjoint_norm", "lenient", "named_method", "solver_keywords"]

Func = Callable[[Tensor, Any], Any]

_ALIASES = {"fixed_adams": "implicit_adams"}

_ADAPTIVE = {
    "first_step": "first_step",
    "min_step": "min_step",
    "max_step": "max_step",
    "max_num_steps": "max_steps",
    "step_t": "step_t",
    "jump_t": "jump_t",
    "norm": "norm",
    "safety": "controller",
    "ifactor": "controller",
    "dfactor": "controller",
    "dtype": None,  # times are counted in float64
}
"""The options of methods with error control, by the keywords of `solve` they become; `None` has no effect."""

_FIXED = {
    "step_size": "step_size",
    "grid_constructor": "grid",
    "interp": "interpolation",
    "perturb": "perturb",
    "norm": "norm",
}
"""The same for methods on a fixed grid."""

_OF_ONE = {"explicit_adams": {"max_iters": None}}  # it does not iterate there either
"""Further options of single methods, besides those that `configured` knows."""

_BLACK_BOX = {"norm": None}

_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


class NamedMethod(NamedTuple):
    """A method, and what the user calls it, for messages."""

    name: str
    method: Method | BlackBox

    @property
    def options(self) -> Mapping[str, str | None]:
        """The options that torchdiffeq's method of this kind has, see above."""
        if not self.method.shows_steps:
            return _BLACK_BOX
        return (_ADAPTIVE if self.method.adaptive else _FIXED) | _OF_ONE.get(self.method.name, {})

    @property
    def callbacks(self) -> tuple[str, ...]:
        """The callbacks that it calls."""
        if not self.method.shows_steps:
            return ()
        return _CALLBACKS if self.method.adaptive else _CALLBACKS[:1]


def named_method(name: str | None) -> NamedMethod:
    """Look a method up by its name in torchdiffeq; `None` is its default."""
    name = name or "dopri5"
    return NamedMethod(name, get_method(_ALIASES.get(name, name)))


def solver_keywords(
    func: Func,
    layout: StateLayout,
    t: Tensor,
    method: NamedMethod,
    options: dict[str, Any] | None,
    suffix: str = "",
) -> dict[str, Any]:
    """The method, the options and the callbacks of torchdiffeq as keywords of `solve`.

    Args:
        func: carries the callbacks.
        layout: of the initial state.
        t: as the user gave it.
        method: the options are for it; those that it does not have warn.
        options: as the user gave them; `None` stands for one that was left out.
        suffix: what the names of callbacks end in.
    """
    chosen, table = method.method, method.options
    keywords: dict[str, Any] = {}
    control, own = {}, {}
    for option, value in (options or {}).items():
        if value is None:
            continue
        if option in chosen.options:
            own[option] = value
        elif option not in table:
            hint = nearest(option, table.keys() | chosen.options)
            _warn(f"option {option!r} has no effect with method {method.name!r}{hint}")
        elif table[option] == "controller":
            control[option] = value
        elif table[option] == "grid":
            keywords["grid"] = _grid(value, func, layout, t)
        elif keyword := table[option]:
            keywords[keyword] = value
    if control:
        keywords["controller"] = IntegralController(**control)
    calls = {name: getattr(func, name + suffix, None) for name in _CALLBACKS}
    for name, call in calls.items():
        if call is not None and name not in method.callbacks:
            _warn(f"callback {name + suffix!r} is never called with method {method.name!r}")
    keywords["callbacks"] = Callbacks(*calls.values())
    return keywords | {"method": chosen.configured(**own) if own else chosen}


def _warn(text: str) -> None:
    """Called two functions below one of the four that users call."""
    warnings.warn(text, NeuralODEWarning, stacklevel=5)


def _grid(constructor: Callable[..., Tensor], func: Func, layout: StateLayout, t: Tensor) -> Callable[..., Tensor]:
    f = layout.dynamics(func)
    return lambda times: constructor(f, layout.y0, times.to(layout.y0.device, t.dtype))


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
            fits = isinstance(slope, Tensor) and slope.shape == y.shape and slope.dtype == y.dtype
            return slope if fits else fitted(slope, y)
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
