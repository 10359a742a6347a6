"""How accurate the ways to differentiate a solve are, and what their backward passes cost (sections 2 and 6).

Each measurement stands in a module of its own, so that a change of one leaves the results of the others.
"""

from reproduction.experiments.adjoint.pieces import Piece, adjoint_pieces
from reproduction.experiments.adjoint.results import Results, results
from reproduction.experiments.adjoint.reversal import RoundTrip, round_trip
from reproduction.experiments.adjoint.verdicts import error_at, error_ratio, exactness, saved_by_problem
from reproduction.experiments.trials import CHOICES, Pendulum, Trial

__all__ = [
    "CHOICES",
    "Pendulum",
    "Piece",
    "Results",
    "RoundTrip",
    "Trial",
    "adjoint_pieces",
    "error_at",
    "error_ratio",
    "exactness",
    "results",
    "round_trip",
    "saved_by_problem",
]
