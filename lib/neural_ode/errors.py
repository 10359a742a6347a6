"""The exceptions and warnings of the library.

Every message names the argument, the value it had, and a way out.
"""

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

__all__ = [
    "FileError",
    "InvalidArgumentError",
    "MaxStepsError",
    "MissingPackageError",
    "NeuralODEError",
    "NeuralODEWarning",
    "NewtonError",
    "NonFiniteError",
    "SolverError",
    "StepSizeUnderflowError",
    "UnknownNameError",
    "finite_number",
    "nearest",
    "needs",
]


_ALSO_CALLED = {
    "adjoint": "backsolve",
    "backprop": "direct",
    "checkpoint": "recursive_checkpoint",
    "dopri45": "dopri5",
    "rk45": "dopri5",
    "RK45": "dopri5",
    "rk23": "bosh3",
    "RK23": "bosh3",
    "vode": "scipy_solver",
    "lsoda": "scipy_solver",
    "LSODA": "scipy_solver",
}
"""Other names of what is known here by one that looks different."""


class NeuralODEError(Exception):
    """Base class of everything this library raises on purpose."""


class InvalidArgumentError(NeuralODEError, ValueError, AssertionError):
    """An argument has a type, shape or value that cannot be used.

    Also an `AssertionError`: that is what torchdiffeq raises for most of them, and what its users catch.
    """


class UnknownNameError(InvalidArgumentError):
    """A method, gradient or option was asked for by a name that does not exist."""

    def __init__(self, what: str, name: object, known: Iterable[str]):
        known = sorted(known)
        self._arguments = (what, name, known)
        usual = _ALSO_CALLED.get(str(name))
        hint = f", did you mean {usual!r}?" if usual in known else nearest(str(name), known)
        super().__init__(f"unknown {what} {name!r}{hint}; known: {', '.join(known)}")

    def __reduce__(self) -> tuple[type["UnknownNameError"], tuple[str, object, list[str]]]:
        """Exceptions are pickled on their way between processes."""
        return UnknownNameError, self._arguments


class FileError(NeuralODEError):
    """A file is missing, cannot be read, or holds something else than it should; the message names it.

    A notebook shows the message alone: where the code was that wanted the file helps nobody.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows."""
        return [f"{type(self).__name__}: {self}"]


class MissingPackageError(NeuralODEError, ModuleNotFoundError):
    """A package is missing that an extra of this one installs."""


class SolverError(NeuralODEError, RuntimeError):
    """A solve could not be finished.

    The kinds below are also `AssertionError`s: that is what torchdiffeq raises, and what its users catch.

    Attributes:
        t: the time that was reached, `None` if unknown.
        partial: what was computed so far: from `solve` a `Solution` with the output times that were passed and,
            at the end, the time that was reached. `None` where nothing was.
    """

    t: float | None = None
    partial: Any = None

    def at(self, t: float, partial: Any = None) -> Self:
        """The same error with the time reached and what was computed so far."""
        self.t, self.partial = t, partial
        return self


class StepSizeUnderflowError(SolverError, AssertionError):
    """The step became too small for the time variable to change."""


class MaxStepsError(SolverError, AssertionError):
    """The solve needed more steps than allowed."""


class NonFiniteError(SolverError, AssertionError):
    """The dynamics returned NaN or infinity and no smaller step helped."""


class NewtonError(SolverError):
    """Newton's method did not solve the equations of an implicit step."""


class NeuralODEWarning(UserWarning):
    """Something was asked for that has no effect here."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the imports of packages that only `pip install '.[<extra>]'`, in a clone, installs.

    Raises:
        MissingPackageError: one of them is not there; names it and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        message = f"the package {package!r} is missing: pip install '.[{extra}]' in a clone"
        raise MissingPackageError(message, name=package) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """`", did you mean 'dopri5'?"`, or an empty string where nothing known comes close."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {match[0]!r}?" if match else ""


def finite_number(name: str, value: Any) -> float:
    """A number, a NumPy scalar or a tensor of one element as a Python float.

    Raises:
        InvalidArgumentError: it is none of these, or not finite.
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidArgumentError(f"{name} must be a finite number, got {value!r}")
    return number
