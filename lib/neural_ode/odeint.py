"""The names and signatures that users of torchdiffeq type: `odeint` and `odeint_adjoint`."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError, NeuralODEWarning, nearest
from neural_ode.gradients import Backsolve
from neural_ode.methods import get_method
from neural_ode.solve import solve
from neural_ode.state import State, max_rms_norm
from neural_ode.step_size import IntegralController

__all__ = ["odeint", "odeint_adjoint"]

_ADAPTIVE = {"first_step", "safety", "ifactor", "dfactor", "max_num_steps", "norm"}
_FIXED = {"step_size", "interp"}


def odeint(
    func: Callable[[Tensor, Any], Any],
    y0: State,
    t: Tensor,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> State:
    """Solve `dy/dt = func(t, y)`, `y(t[0]) = y0`, and differentiate through the steps.

    The arguments are those of torchdiffeq's `odeint`, and mean the same. Not taken yet: events, complex states,
    a tolerance for each part of a state, and the options that are not named below. `solve` does the work and has
    the longer documentation.

    Args:
        func: the dynamics.
        y0: a tensor or a tuple of tensors.
        t: times, strictly monotonic, shape (n,).
        rtol, atol: tolerances.
        method: `"dopri5"` if left out.
        options: `first_step`, `safety`, `ifactor`, `dfactor`, `max_num_steps` and `norm` for adaptive methods;
            `step_size` and `interp` for methods on a fixed grid. Others warn and have no effect.

    Returns:
        The states at `t`: shape (n, *y0.shape), or a tuple of such tensors.
    """
    return solve(
        func, y0, _tensor(t), method=method or "dopri5", rtol=rtol, atol=atol, **_keywords(method, options)
    ).y


def odeint_adjoint(
    func: Callable[[Tensor, Any], Any],
    y0: State,
    t: Tensor,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> State:
    """`odeint` with gradients by the adjoint method (`gradient="backsolve"` of `solve`).

    Args:
        func, y0, t, rtol, atol, method, options: see `odeint`. `func` must be a module unless `adjoint_params`
            is given.
        adjoint_rtol, adjoint_atol, adjoint_method: of the backward solve; those of the forward solve if left out.
        adjoint_options: `step_size` and `norm` of the backward solve; others warn and have no effect. A norm gets
            the tuple `(0, y, a, *∂L/∂θ)`, its first entry in the place of `∂L/∂t`, which is no part of the system
            here; `"seminorm"` leaves out the parameters (Kidger et al. 2021).
        adjoint_params: tensors that get gradients besides `y0` and `t`; the parameters of `func` if left out.

    Raises:
        InvalidArgumentError: `func` is no module and `adjoint_params` is not given.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise InvalidArgumentError(
            f"func must be a torch.nn.Module where adjoint_params is not given, got {type(func).__name__}"
        )
    backward_options = dict(adjoint_options or {})
    backsolve = Backsolve(
        method=adjoint_method,
        rtol=adjoint_rtol,
        atol=adjoint_atol,
        step_size=backward_options.pop("step_size", None),
        norm=_adjoint_norm(backward_options.pop("norm", None)),
    )
    for name in backward_options:
        warnings.warn(f"adjoint option {name!r} has no effect", NeuralODEWarning, stacklevel=2)
    return solve(
        func,
        y0,
        _tensor(t),
        method=method or "dopri5",
        rtol=rtol,
        atol=atol,
        gradient=backsolve,
        params=adjoint_params,
        **_keywords(method, options),
    ).y


def _adjoint_norm(norm: Any) -> Callable[[tuple[Tensor, ...]], Tensor] | None:
    """The norm of torchdiffeq's adjoint as one of `Backsolve`."""
    if norm is None:
        return None
    if norm == "seminorm":
        return lambda parts: max_rms_norm(list(parts[:2]))
    if not callable(norm):
        raise InvalidArgumentError(f"norm must be a function or 'seminorm', got {norm!r}")
    return lambda parts: norm((parts[0].new_zeros(()), *parts))


def _tensor(t: Tensor) -> Tensor:
    if not isinstance(t, Tensor):
        raise InvalidArgumentError(f"t must be a tensor, got {type(t).__name__}: use torch.as_tensor(t)")
    return t


def _keywords(method: str | None, options: dict[str, Any] | None) -> dict[str, Any]:
    """The options of torchdiffeq as keywords of `solve`."""
    given = dict(options or {})
    known = _ADAPTIVE if get_method(method or "dopri5").adaptive else _FIXED
    for name in given.keys() - known:
        text = f"option {name!r} has no effect with method {method or 'dopri5'!r}{nearest(name, known)}"
        warnings.warn(text, NeuralODEWarning, stacklevel=3)
        del given[name]
    keywords = {
        new: given[old]
        for old, new in (
            ("first_step", "first_step"),
            ("norm", "norm"),
            ("step_size", "step_size"),
            ("max_num_steps", "max_steps"),
            ("interp", "interpolation"),
        )
        if given.get(old) is not None
    }
    control = {name: given[name] for name in ("safety", "ifactor", "dfactor") if name in given}
    return keywords | ({"controller": IntegralController(**control)} if control else {})
