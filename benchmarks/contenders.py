"""The libraries, each as its documentation says it is fastest."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.problems import Problem
from benchmarks.timing import Contender, Run, Unavailable
from neural_ode import NeuralODEWarning, Statistics, solve

__all__ = [
    "RUNS_AS_IT_IS",
    "compiled_dynamics",
    "diffrax",
    "gradients_alone",
    "ours",
    "scipy",
    "torchdiffeq",
    "torchode",
]

GradientName = Literal["direct", "backsolve", "recursive_checkpoint"]
Outcome = tuple[Any, int | None]

RUNS_AS_IT_IS = "compile=True runs it as it is"
"""How the reason begins for which a compiled solve is left out, where nothing went wrong."""


def ours(
    problem: Problem,
    method: str,
    tolerance: float,
    gradient: GradientName | None = None,
    name: str = "neural_ode",
    compile: bool = False,
    batched: bool = False,
) -> Contender:
    """This library, the solve alone or with the gradient of all initial values and parameters."""
    how: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance}
    how |= {"compile": compile, "batched": batched}

    def solved() -> tuple[Any, Statistics]:
        if gradient is None:
            with torch.no_grad():
                solution = solve(problem.f, problem.y0, problem.t, **how)
            return solution.y, solution.stats
        y0 = _leaf(problem)
        solution = solve(problem.f, y0, problem.t, gradient=gradient, **how)
        return _gradients(problem, y0, solution.y), solution.stats

    def run() -> Outcome:
        values, stats = solved()
        return values, stats.nfe + (0 if stats.backward is None else stats.backward.nfe)

    def prepare() -> Run:
        if compile:
            # A solve that runs as it is would be a row with a wrong name.
            with warnings.catch_warnings():
                warnings.simplefilter("error", NeuralODEWarning)
                try:
                    _, stats = solved()
                except NeuralODEWarning as warning:
                    raise Unavailable(f"{warning}") from None
            for one in (stats, stats.backward):
                if one is not None and one.compiled is None:
                    raise Unavailable(f"{RUNS_AS_IT_IS}: {one.not_compiled}")
        return run

    return Contender(name, prepare, compiles=compile)


def torchdiffeq(
    problem: Problem,
    method: str,
    tolerance: float,
    gradient: GradientName | None = None,
    name: str = "torchdiffeq",
    compile_dynamics: bool = False,
) -> Contender:
    """torchdiffeq; `gradient="backsolve"` is its `odeint_adjoint`."""
    how = {"method": method, "rtol": tolerance, "atol": tolerance}

    def once(f: Any) -> Any:
        from torchdiffeq import odeint, odeint_adjoint

        if gradient is None:
            with torch.no_grad():
                return odeint(f, problem.y0, problem.t, **how)
        y0 = _leaf(problem)
        return _gradients(
            problem, y0, (odeint if gradient == "direct" else odeint_adjoint)(f, y0, problem.t, **how)
        )

    def prepare() -> Run:
        _require("torchdiffeq")
        f = torch.compile(problem.f) if compile_dynamics else problem.f
        return lambda: (once(f), None)

    def count() -> int:
        counting = _Counting(problem.f)
        once(counting)
        return counting.calls

    return Contender(name, prepare, count, compiles=compile_dynamics)


def compiled_dynamics(problem: Problem, evaluations: Callable[[], int]) -> Contender:
    """As many evaluations of the compiled right-hand side, called from Python, and nothing else."""

    def prepare() -> Run:
        f, n, t0 = torch.compile(problem.f), evaluations(), problem.t[0]

        def run() -> Outcome:
            with torch.no_grad():
                for _ in range(n):
                    slope = f(t0, problem.y0)
            return slope, n

        return run

    return Contender("f alone, compiled", prepare, compiles=True)


def gradients_alone(problem: Problem, evaluations: Callable[[], int]) -> Contender:
    """As many evaluations of the right-hand side, each with its backward pass, and nothing else: what no way to
    differentiate the steps can be faster than."""

    def prepare() -> Run:
        n, t0 = evaluations(), problem.t[0]
        inputs = (_leaf(problem), *problem.f.parameters())

        def run() -> Outcome:
            for _ in range(n):
                torch.autograd.grad(problem.f(t0, inputs[0]).sum(), inputs)
            return (), n

        return run

    return Contender("f and its gradient alone", prepare)


_DIFFRAX = {"dopri5": "Dopri5", "tsit5": "Tsit5", "dopri8": "Dopri8", "bosh3": "Bosh3"}


def diffrax(
    problem: Problem,
    method: str,
    gradient: GradientName | None = None,
    name: str = "diffrax",
    batched: bool = False,
) -> Callable[[float], Contender]:
    """diffrax under `jax.jit`, as a function of the tolerance, for which nothing is compiled again.

    Its way to give every sample steps of its own (`batched`) is `jax.vmap` of a solve.
    """
    adjoint = {"direct": "RecursiveCheckpointAdjoint", "backsolve": "BacksolveAdjoint"}

    @functools.cache
    def build() -> Callable[[float], Outcome]:
        _require("diffrax")
        import diffrax as dfx
        import jax
        from jax import numpy as jnp

        solver = getattr(dfx, _DIFFRAX[method])()
        tableau = solver.tableau
        stages = tableau.num_stages - int(tableau.fsal)
        # Where nothing lies between the ends, nothing has to be looked for in every step.
        saved = dfx.SaveAt(ts=_jax(problem.t)) if len(problem.t) > 2 else dfx.SaveAt(t0=True, t1=True)
        term = dfx.ODETerm(functools.partial(problem.formula, jnp))
        ts = _jax(problem.t)
        params = [_jax(p) for p in problem.f.parameters()]
        y0 = jax.tree.map(_jax, problem.y0)

        def forward(y0: Any, params: Any, tolerance: Any) -> Any:
            # A solve without gradients keeps nothing, so a limit that is never met costs nothing.
            how: dict[str, Any] = {"max_steps": 1_000_000}
            if gradient is not None:
                how = {"max_steps": 4096, "adjoint": getattr(dfx, adjoint[gradient])()}
            found = dfx.diffeqsolve(
                term,
                solver,
                ts[0],
                ts[-1],
                None,
                y0,
                args=params,
                saveat=saved,
                stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
                **how,
            )
            # Two more for the first step and its length.
            return found.ys, found.stats["num_steps"] * stages + 2

        def each(y0: Any, params: Any, tolerance: Any) -> Any:
            one = functools.partial(forward, params=params, tolerance=tolerance)
            ys, nfe = jax.vmap(one)(y0)
            return jax.tree.map(lambda y: jnp.swapaxes(y, 0, 1), ys), nfe.max()

        def loss(inputs: Any, tolerance: Any) -> Any:
            ys, _ = forward(*inputs, tolerance)
            return sum((part[-1] ** 2).mean() for part in jax.tree.leaves(ys))

        solve_jit = jax.jit(each if batched else forward)
        gradient_jit = jax.jit(jax.grad(loss))

        def call(tolerance: float) -> Outcome:
            if gradient is None:
                ys, nfe = jax.block_until_ready(solve_jit(y0, params, tolerance))
                return ys, nfe
            by_y0, by_params = jax.block_until_ready(gradient_jit((y0, params), tolerance))
            return (by_y0, by_params), None

        return call

    def at(tolerance: float) -> Contender:
        def prepare() -> Run:
            call = build()
            return lambda: call(tolerance)

        return Contender(name, prepare, compiles=True)

    return at


def torchode(
    problem: Problem,
    method: str,
    tolerance: float,
    mode: Literal["eager", "script", "compile"],
    name: str = "torchode",
    gradient: Literal["direct"] | None = None,
) -> Contender:
    """torchode: every sample has its own steps, gradients by `AutoDiffAdjoint`, through the steps.

    Its README compiles the solver and then calls a method of the module inside, which runs as it is; what is
    compiled here is that method.
    """

    def prepare() -> Run:
        _require("torchode")
        import torchode as to

        assert isinstance(problem.y0, Tensor)
        y0 = problem.y0 if problem.y0.dim() == 2 else problem.y0[None]
        shape = (len(problem.t), *problem.y0.shape)
        term = to.ODETerm(problem.f)
        step_method = {"dopri5": to.Dopri5, "tsit5": to.Tsit5}[method](term=term)
        controller = to.IntegralController(atol=tolerance, rtol=tolerance, term=term)
        solver = to.AutoDiffAdjoint(step_method, controller)
        if mode == "script":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch has deprecated TorchScript
                solver = torch.jit.script(solver)
        call = torch.compile(solver.solve) if mode == "compile" else solver.solve
        times = problem.t.expand(len(y0), -1)
        ends_only = len(problem.t) == 2  # its loop is faster without times to look for
        given = {"t_start": times[:, 0], "t_end": times[:, 1]} if ends_only else {"t_eval": times}

        def run() -> Outcome:
            start = y0 if gradient is None else _leaf(problem)
            with torch.set_grad_enabled(gradient is not None):
                solution = call(to.InitialValueProblem(y0=start, **given))
                y = solution.ys.transpose(0, 1)
                y = (torch.cat([start[None], y]) if ends_only else y).reshape(shape)
            values = y if gradient is None else _gradients(problem, start, y)
            return values, int(solution.stats["n_f_evals"].amax())

        return run

    return Contender(name, prepare, compiles=mode == "compile")


def scipy(
    problem: Problem, method: str, tolerance: float, name: str = "SciPy", **further: Callable[[], Any]
) -> Contender:
    """`scipy.integrate.solve_ivp`, with what further arguments of it return."""

    def prepare() -> Run:
        _require("scipy")
        from scipy.integrate import solve_ivp

        assert isinstance(problem.y0, Tensor)
        y0, times = problem.y0.numpy(), problem.t.numpy()
        params = [p.detach().numpy() for p in problem.f.parameters()]
        given = {argument: make() for argument, make in further.items()}

        def f(t: float, y: Any) -> Any:
            return problem.formula(np, t, y.reshape(y0.shape), params).ravel()

        def run() -> Outcome:
            found = solve_ivp(
                f, (times[0], times[-1]), y0.ravel(), method, t_eval=times, rtol=tolerance, atol=tolerance, **given
            )
            if not found.success:
                raise RuntimeError(found.message)
            return found.y.T.reshape(len(times), *y0.shape), found.nfev

        return run

    return Contender(name, prepare)


def _leaf(problem: Problem) -> Any:
    leaves = tuple(part.detach().requires_grad_() for part in problem.parts)
    return leaves if isinstance(problem.y0, tuple) else leaves[0]


def _gradients(problem: Problem, y0: Any, y: Any) -> tuple[Tensor, ...]:
    """The gradients of the mean square of the last state."""
    loss = torch.stack([(part[-1] ** 2).mean() for part in (y if isinstance(y, tuple) else (y,))]).sum()
    inputs = (*(y0 if isinstance(y0, tuple) else (y0,)), *problem.f.parameters())
    return torch.autograd.grad(loss, inputs)


class _Counting(nn.Module):
    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f, self.calls = f, 0

    def forward(self, t: Tensor, y: Any) -> Any:
        self.calls += 1
        return self.f(t, y)


def _jax(x: Tensor) -> Any:
    from jax import numpy as jnp

    return jnp.asarray(x.detach().cpu().numpy())


def _require(package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        raise Unavailable(f"{package} is not installed") from None
