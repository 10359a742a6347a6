"""Dynamics of continuous flows, and the discrete flow they are compared with (section 4 and appendix A).

* `planar`: planar dynamics with gated units, and what makes their weights from the time.
* `hamiltonian`: dynamics without a trace.
* `discrete`: the planar flow of Rezende & Mohamed (2015), layer by layer.

The continuous flow itself, over any dynamics, is `neural_ode.nn.ContinuousFlow`.
"""

from reproduction.models.flows.discrete import PlanarFlow
from reproduction.models.flows.hamiltonian import HamiltonianDynamics
from reproduction.models.flows.planar import GatedUnits, HyperNetwork, PlanarDynamics

__all__ = ["GatedUnits", "HamiltonianDynamics", "HyperNetwork", "PlanarDynamics", "PlanarFlow"]
