"""Layers and flows that solve an ordinary differential equation, to build models of.

* `OdeBlock`: a layer whose output is the state at a later time.
* `ContinuousFlow`: a density, made by carrying the standard normal distribution along any dynamics.
* `union_of_times`: one solve for series that are observed at different times.

The other names are for models of one's own: what a flow is made of, and checks of its arguments.
"""

from neural_ode.nn.base_distribution import check_points, draw_base, positive, standard_normal
from neural_ode.nn.continuous_flow import TRACES, Carried, ContinuousFlow, Transported, WithLogDensity
from neural_ode.nn.ode_block import OdeBlock
from neural_ode.nn.own_times import Union, union_of_times

__all__ = [
    "TRACES",
    "Carried",
    "ContinuousFlow",
    "OdeBlock",
    "Transported",
    "Union",
    "WithLogDensity",
    "check_points",
    "draw_base",
    "positive",
    "standard_normal",
    "union_of_times",
]
