"""Normalizing flows, discrete and continuous (Chen et al. 2018, section 4 and appendix A).

* `continuous`: a continuous normalizing flow over any dynamics, and the ways to get the trace of its Jacobian.
* `planar`: planar dynamics with gated units, and what makes their weights from the time.
* `hamiltonian`: dynamics without a trace.
* `discrete`: the planar flow of Rezende & Mohamed (2015), layer by layer.
"""

from neural_ode.nn.base_distribution import standard_normal
from neural_ode.nn.continuous_flow import TRACES, Carried, ContinuousFlow, WithLogDensity
from reproduction.models.flows.discrete import PlanarFlow
from reproduction.models.flows.hamiltonian import HamiltonianDynamics
from reproduction.models.flows.planar import GatedUnits, HyperNetwork, PlanarDynamics

__all__ = [
    "TRACES",
    "Carried",
    "ContinuousFlow",
    "GatedUnits",
    "HamiltonianDynamics",
    "HyperNetwork",
    "PlanarDynamics",
    "PlanarFlow",
    "WithLogDensity",
    "standard_normal",
]
