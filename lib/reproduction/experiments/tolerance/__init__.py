"""What tolerance buys and costs on a trained ODE network (Figure 3 of Chen et al. 2018, and its later critics).

Each measurement stands in a module of its own, so that a change of one leaves the results of the others.
"""

from reproduction.experiments.tolerance.path import Path, path_of
from reproduction.experiments.tolerance.precision import evaluations_at
from reproduction.experiments.tolerance.results import Results, results
from reproduction.experiments.tolerance.solves import SOLVERS

__all__ = ["SOLVERS", "Path", "Results", "evaluations_at", "path_of", "results"]
