"""Layers and flows that solve an ordinary differential equation, to build models of.

* `OdeBlock`: a layer whose output is the state at a later time.
* `ContinuousFlow`: a density, made by carrying the standard normal distribution along any dynamics.
* `RegularizedBlock`, `RegularizedFlow`: the same with costs of the path, such as `kinetic_energy`, `jacobian_norm`
  and `total_derivative`, which the same solve integrates.
* `union_of_times`: one solve for series that are observed at different times.

The other names are for models of one's own: what a flow is made of, and checks of its arguments.
"""

from neural_ode.nn.base_distribution import check_points, draw_base, positive, standard_normal
from neural_ode.nn.continuous_flow import TRACES, Carried, ContinuousFlow, Transported, WithLogDensity
from neural_ode.nn.ode_block import OdeBlock
from neural_ode.nn.own_times import Union, union_of_times
from neural_ode.nn.running_costs import (
    OnPath,
    RegularizedBlock,
    RegularizedFlow,
    RunningCost,
    WithRunningCosts,
    jacobian_norm,
    kinetic_energy,
    total_derivative,
)

__all__ = [
    "TRACES",
    "Carried",
    "ContinuousFlow",
    "OdeBlock",
    "OnPath",
    "RegularizedBlock",
    "RegularizedFlow",
    "RunningCost",
    "Transported",
    "Union",
    "WithLogDensity",
    "WithRunningCosts",
    "check_points",
    "draw_base",
    "jacobian_norm",
    "kinetic_energy",
    "positive",
    "standard_normal",
    "total_derivative",
    "union_of_times",
]
