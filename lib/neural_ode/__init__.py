"""Neural ordinary differential equations in PyTorch.

`solve` integrates `dy/dt = f(t, y)` and says what it cost; `odeint` and `odeint_adjoint` have the signatures of
torchdiffeq. How a solve is differentiated is a choice among five: `GRADIENTS`.
"""

from importlib import import_module

from neural_ode.control.controllers import IntegralController, PIDController
from neural_ode.errors import (
    InvalidArgumentError,
    MaxStepsError,
    NeuralODEError,
    NeuralODEWarning,
    NewtonError,
    NonFiniteError,
    SolverError,
    StepSizeUnderflowError,
    UnknownNameError,
)
from neural_ode.gradients import GRADIENTS, Backsolve, Direct, Interpolating, RecursiveCheckpoint, Reversible
from neural_ode.methods import METHODS
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.event import Event
from neural_ode.problem.norms import rms_norm
from neural_ode.solution import DenseOutput, Solution, Statistics
from neural_ode.solve import solve
from neural_ode.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event

__version__ = "1.0.0"

# By name: what a notebook depends on is read from imports, and no result depends on names of the past.
import_module("neural_ode._moved").install()

__all__ = [
    "GRADIENTS",
    "METHODS",
    "Backsolve",
    "Callbacks",
    "DenseOutput",
    "Direct",
    "Event",
    "IntegralController",
    "Interpolating",
    "InvalidArgumentError",
    "MaxStepsError",
    "NeuralODEError",
    "NeuralODEWarning",
    "NewtonError",
    "NonFiniteError",
    "PIDController",
    "RecursiveCheckpoint",
    "Reversible",
    "Solution",
    "SolverError",
    "Statistics",
    "StepSizeUnderflowError",
    "UnknownNameError",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "rms_norm",
    "solve",
]
