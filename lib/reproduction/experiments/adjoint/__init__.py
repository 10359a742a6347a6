"""How accurate the ways to differentiate a solve are, and what their backward passes cost (sections 2 and 6)."""

from reproduction.experiments.adjoint.derivatives import hessian_vector_error, time_gradient_error
from reproduction.experiments.adjoint.errors import CHOICES, FAILED, accuracy, error_slope, worst_ratio
from reproduction.experiments.adjoint.evaluations import backward_evaluations
from reproduction.experiments.adjoint.pieces import Piece, adjoint_pieces
from reproduction.experiments.adjoint.reversal import RoundTrip, reconstruction, round_trip
from reproduction.experiments.adjoint.training import train, train_flow
from reproduction.experiments.adjoint.trials import Network, Pendulum, Trial, further_problems, problems

__all__ = [
    "CHOICES",
    "FAILED",
    "Network",
    "Pendulum",
    "Piece",
    "RoundTrip",
    "Trial",
    "accuracy",
    "adjoint_pieces",
    "backward_evaluations",
    "error_slope",
    "further_problems",
    "hessian_vector_error",
    "problems",
    "reconstruction",
    "round_trip",
    "time_gradient_error",
    "train",
    "train_flow",
    "worst_ratio",
]
