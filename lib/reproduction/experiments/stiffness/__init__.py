"""What stiffness costs solvers and gradients: three families of problems, and a network trained until it is stiff.

HW is Hairer & Wanner, *Solving Ordinary Differential Equations II: Stiff and Differential-Algebraic Problems*,
2nd ed., 1996.
"""

from reproduction.experiments.stiffness.costs import SOLVERS, cheapest
from reproduction.experiments.stiffness.results import NETWORK, Results, results

__all__ = ["NETWORK", "SOLVERS", "Results", "cheapest", "results"]
