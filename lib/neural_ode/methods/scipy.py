"""The solvers of SciPy as black boxes."""

import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from neural_ode.errors import (
    InvalidArgumentError,
    MaxStepsError,
    NeuralODEWarning,
    NonFiniteError,
    SolverError,
    StepSizeUnderflowError,
    UnknownNameError,
    finite_number,
)
from neural_ode.methods.arrays import (
    Array,
    ArrayDynamics,
    ArrayOutputs,
    ArraySolver,
    Failure,
    absolute_tolerance,
    to_numpy,
    to_torch,
)
from neural_ode.methods.external import BlackBox
from neural_ode.problem.state import Dynamics

__all__ = ["SCIPY_SOLVERS", "ScipySolver"]


@dataclass(frozen=True)
class _Entry:
    """What is known of a solver of SciPy.

    Attributes:
        odepack: name in `scipy.integrate.ode`; `None`: the solver is a class of `scipy.integrate` and has its name.
        kind: of linear multistep method, where VODE has to be told.
        newton: whether VODE solves the equations of a step by Newton's method; else by fixed-point iteration.
        real: whether it takes real states.
        complex: whether it takes complex states.
    """

    odepack: str | None = None
    kind: str = ""
    newton: bool = False
    real: bool = True
    complex: bool = False


SCIPY_SOLVERS: dict[str, _Entry] = {
    "RK23": _Entry(complex=True),
    "RK45": _Entry(complex=True),
    "DOP853": _Entry(complex=True),
    "Radau": _Entry(),
    "BDF": _Entry(complex=True),
    "LSODA": _Entry("lsoda"),
    "vode-adams": _Entry("zvode", "adams"),
    "vode-adams-newton": _Entry("zvode", "adams", newton=True),
    "vode-bdf": _Entry("zvode", "bdf", newton=True),
    "zvode-adams": _Entry("zvode", "adams", real=False, complex=True),
    "zvode-adams-newton": _Entry("zvode", "adams", newton=True, real=False, complex=True),
    "zvode-bdf": _Entry("zvode", "bdf", newton=True, real=False, complex=True),
}
"""The solvers of SciPy by the names they have there.

`RK23`, `RK45` and `DOP853` are explicit Runge-Kutta methods, `Radau` and `BDF` implicit ones for stiff problems.
LSODA (Petzold 1983) changes between the Adams methods and the BDF by itself. VODE (Brown, Byrne & Hindmarsh 1989)
has both, with coefficients for variable steps; ZVODE is VODE for complex states. It makes the steps of VODE, too:
of a real state they are the same, and the VODE of SciPy 1.17 stays at order 1 on stiff problems. The equations of
an Adams step are solved by fixed-point iteration, which converges for steps that are short beside the stiffness
only, or by Newton's method (`-newton`). The BDF always have Newton's: they would be no better on stiff problems
than explicit methods.
"""


@dataclass(frozen=True)
class ScipySolver(BlackBox):
    """The solvers of SciPy. They compute in float64, on the CPU, whatever the state; `f` stays where the state is.

    A state in float32 limits what tolerance makes sense: below its rounding, about 1e-6, a solver sees noise where
    it looks for an error and shortens its steps in vain. Of complex states, `BDF` and the ZVODE that
    uses Newton's method differentiate `f` along the real axis only, which is enough if `f` is holomorphic.

    Attributes:
        solver: a name in `SCIPY_SOLVERS`, in upper or lower case.
        first_step: length of the first step; by default the solver chooses it.
        min_step: shortest step; only VODE, ZVODE and LSODA have one, and the LSODA of SciPy 1.17 pays no heed.
        max_step: longest step.
        max_steps: how many steps from one output time to the next before the solve is given up.
    """

    name = "scipy_solver"
    options = frozenset({"solver", "first_step", "min_step", "max_step", "max_steps"})

    solver: str = "LSODA"
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    max_steps: int = 2**31 - 1

    def configured(self, **options: Any) -> "ScipySolver":
        """The solver with other values of its fields."""
        return replace(self, **options)

    def __post_init__(self) -> None:
        names = {name.lower(): name for name in SCIPY_SOLVERS}
        if str(self.solver).lower() not in names:
            raise UnknownNameError("solver of SciPy", self.solver, SCIPY_SOLVERS)
        object.__setattr__(self, "solver", names[self.solver.lower()])
        if self.first_step is not None and not finite_number("first_step", self.first_step) > 0:
            raise InvalidArgumentError(f"first_step must be a positive number, got {self.first_step!r}")
        if not finite_number("min_step", self.min_step) >= 0:
            raise InvalidArgumentError(f"min_step must be zero or more, got {self.min_step!r}")
        if not self.max_step > self.min_step:
            raise InvalidArgumentError(f"max_step must be longer than min_step, got {self.max_step!r}")
        if finite_number("max_steps", self.max_steps) < 1:
            raise InvalidArgumentError(f"max_steps must be at least 1, got {self.max_steps!r}")
        if self.min_step and SCIPY_SOLVERS[self.solver].odepack is None:
            message = f"{self.solver} has no shortest step: min_step={self.min_step!r} has no effect"
            warnings.warn(message, NeuralODEWarning, stacklevel=3)

    def integrate(
        self, f: Dynamics, y0: Tensor, t: Tensor | Sequence[float], rtol: float | Tensor, atol: float | Tensor
    ) -> tuple[Tensor, int]:
        """Solve on the CPU in double precision, whatever `y0` is; see `BlackBox.integrate`.

        Raises:
            InvalidArgumentError: the solver has no real, or no complex states, as `y0` is; or SciPy is missing.
            SolverError: SciPy gave up, with its reason.
        """
        entry = SCIPY_SOLVERS[self.solver]
        if not (entry.complex if y0.is_complex() else entry.real):
            kind = "complex" if y0.is_complex() else "real"
            able = [name for name, other in SCIPY_SOLVERS.items() if getattr(other, kind)]
            raise InvalidArgumentError(f"solver {self.solver!r} takes no {kind} y0; {', '.join(able)} do")
        times = [float(time) for time in t]
        if len(times) == 1 or y0.numel() == 0:
            return y0.detach().expand(len(times), *y0.shape).clone(), 0
        relative, absolute = self._relative(rtol, y0), absolute_tolerance(atol, y0)
        dynamics = ArrayDynamics(f, y0)
        outputs = ArrayOutputs(times, to_numpy(y0))
        make = _OdepackStepper if entry.odepack else _Stepper
        try:
            with _alone(self.solver) if entry.odepack else nullcontext():
                stepper = make(self, dynamics, outputs.y, times, relative, absolute)
                self._run(stepper, dynamics, outputs)
        except SolverError as error:
            if error is dynamics.raised and dynamics.starts:  # the user's own
                raise
            passed = [*times[: len(outputs.states)], outputs.now]
            states = to_torch([*outputs.states, outputs.y], y0)
            raise error.at(outputs.now, (passed, states)) from None
        return to_torch(outputs.states, y0), dynamics.calls

    def _relative(self, rtol: float | Tensor, y0: Tensor) -> float | Array:
        """Not less than what the solvers of SciPy would set it to, with a warning."""
        least = 100 * np.finfo(np.float64).eps
        if not isinstance(rtol, Tensor) or rtol.numel() == 1:
            return max(float(rtol), least)
        if self.solver in ("Radau", "BDF"):
            raise InvalidArgumentError(
                f"rtol must be one number for solver {self.solver!r}, got a tensor of shape {tuple(rtol.shape)}; "
                "atol may have one for each entry"
            )
        return np.maximum(to_numpy(rtol.expand(y0.shape)), least)

    def _run(self, stepper: ArraySolver, dynamics: ArrayDynamics, outputs: ArrayOutputs) -> None:
        steps = 0
        while not outputs.complete:
            now = outputs.now
            if steps == self.max_steps:
                raise MaxStepsError(
                    f"{self.solver}: {self.max_steps} steps were not enough to go to t = {outputs.due}: reached "
                    f"t = {now}; allow more with max_steps, loosen rtol and atol, or use another solver"
                )
            dynamics.finite = True
            failure = stepper.step()
            if failure is None and stepper.t == now:
                failure = StepSizeUnderflowError, "the steps are too small to change t"
            if failure is not None and dynamics.finite:
                kind, reason = failure
                raise kind(
                    f"{self.solver} stopped at t = {now}: {reason}; loosen rtol and atol, use float64, or another "
                    "solver"
                )
            if failure is not None or not np.isfinite(stepper.y).all():
                raise NonFiniteError(
                    f"f(t, y) is NaN or infinite after t = {now}, where {self.solver} stopped: does the "
                    "solution blow up there, or leave the domain of f?"
                )
            steps = 0 if outputs.collect(stepper) else steps + 1


class _Stepper:
    """The solvers of SciPy that are written in Python."""

    def __init__(
        self, how: ScipySolver, f: ArrayDynamics, y0: Array, times: list[float], rtol: float | Array, atol: Array
    ):
        span = abs(times[-1] - times[0])
        self._dynamics = f
        self._solver = getattr(_scipy_integrate(), how.solver)(
            f,
            times[0],
            y0,
            times[-1],
            rtol=rtol,
            atol=atol,
            max_step=how.max_step,
            first_step=None if how.first_step is None else min(how.first_step, span),
        )
        self._dense: Any = None
        self.t: float = times[0]
        self.y = y0

    def step(self) -> Failure | None:
        try:
            message = self._solver.step()
        except ValueError as error:  # of the factorization of a matrix that is not finite
            if error is self._dynamics.raised or self._dynamics.finite:
                raise
            return NonFiniteError, str(error)
        if self._solver.status == "failed":
            return StepSizeUnderflowError, message.rstrip(".").lower()
        self.t, self.y = float(self._solver.t), self._solver.y
        self._dense = None
        return None

    def at(self, t: float) -> Array:
        if self._dense is None:
            self._dense = self._solver.dense_output()  # costs evaluations: DOP853 has stages for it alone
        y: Array = self._dense(t)
        return y


class _OdepackStepper:
    """LSODA, VODE and ZVODE, which were written in Fortran.

    `scipy.integrate.ode` has no way to say that the dynamics end at the last time; the solvers themselves have, so
    they are told directly, as SciPy's own `LSODA` does: the entry of their arguments after the tolerances says
    what to do, and the first of their real workspace is the time not to pass.
    """

    _GO_TO, _ONE_STEP = 4, 5

    def __init__(
        self, how: ScipySolver, f: ArrayDynamics, y0: Array, times: list[float], rtol: float | Array, atol: Array
    ):
        entry = SCIPY_SOLVERS[how.solver]
        direction = math.copysign(1.0, times[-1] - times[0])
        settings: dict[str, Any] = {
            "rtol": rtol,
            "atol": atol,
            "first_step": direction * min(how.first_step or 0.0, abs(times[-1] - times[0])),
            "min_step": how.min_step,
            "max_step": 0.0 if how.max_step == math.inf else how.max_step,
        }
        if entry.kind:
            settings |= {"method": entry.kind, "with_jacobian": entry.newton}
        self._ode = _scipy_integrate().ode(self._evaluate).set_integrator(entry.odepack, **settings)
        self._ode.set_initial_value(y0, times[0])
        self._dynamics, self._real = f, np.isrealobj(y0)
        self._ode._integrator.rwork[0] = times[-1]
        self._end = times[-1]
        self.t: float = times[0]
        self.y = y0

    def _evaluate(self, t: float, y: Array) -> Array:
        """Without exceptions: VODE goes on after one. It gives up when all it gets is NaN."""
        if self._dynamics.raised is None:
            with suppress(BaseException):  # kept in `raised`
                return self._dynamics(t, self._state(y)).astype(y.dtype)
        return np.full_like(y, math.nan)

    def _state(self, y: Array) -> Array:
        """A copy of what the solver works on, real if the state is."""
        state: Array = (y.real if self._real else y).copy()
        return state

    def _call(self, task: int, t: float) -> Array:
        self._ode._integrator.call_args[2] = task
        y: Array = self._ode.integrate(t)
        if self._dynamics.raised is not None:
            raise self._dynamics.raised
        return self._state(y)

    def step(self) -> Failure | None:
        y = self._call(self._ONE_STEP, self._end)
        if not self._ode.successful():
            return _ODEPACK_FAILURES.get(self._ode.get_return_code(), (SolverError, "it failed"))
        self.t, self.y = float(self._ode.t), y
        return None

    def at(self, t: float) -> Array:
        return self._call(self._GO_TO, t)


_ODEPACK_FAILURES: dict[int, Failure] = {
    -1: (MaxStepsError, "it made too much work of one step"),
    -2: (SolverError, "rtol and atol ask for more than the precision of the numbers"),
    -3: (SolverError, "it finds its input illegal"),
    -4: (StepSizeUnderflowError, "the error is too large however small the step"),
    -5: (SolverError, "its nonlinear equations are not solved however small the step"),
    -6: (SolverError, "the tolerance of an entry became zero: atol must be positive where y vanishes"),
}
"""What the return codes mean, from the documentation of ODEPACK (Hindmarsh 1983)."""


def _scipy_integrate() -> Any:
    """`scipy.integrate`, imported when it is needed."""
    try:
        import scipy.integrate
    except ImportError as error:
        raise InvalidArgumentError(
            "method 'scipy_solver' needs SciPy, which is not installed: pip install scipy, or use another method"
        ) from error
    return scipy.integrate


_odepack = threading.Lock()
_odepack_owner: int | None = None


@contextmanager
def _alone(solver: str) -> Iterator[None]:
    """Let one solve at a time into ODEPACK, which keeps what it knows of a solve in global variables."""
    global _odepack_owner
    if _odepack_owner == threading.get_ident():
        raise InvalidArgumentError(
            f"f(t, y) of a solve with solver {solver!r}, LSODA or VODE itself calls such a solver, which can only "
            "do one solve at a time: use 'DOP853', 'BDF' or 'Radau' for one of them"
        )
    with _odepack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"z?vode: |lsoda: ")  # said again, at more length, by the exception
        _odepack_owner = threading.get_ident()
        try:
            yield
        finally:
            _odepack_owner = None
