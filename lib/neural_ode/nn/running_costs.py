"""Costs that are integrated along the path of a solve, by the same solve: what regularises a neural ODE.

    dz/dt = f(t, z),    dc/dt = r(t, z),    c(t0) = 0

Among all dynamics with the same flow those with a small cost are easier to solve. Each of the costs here is the
square of something that vanishes where a path is simple:

* `kinetic_energy`: the speed (Finlay et al. 2020, *How to train your neural ODE*, section 3.1);
* `jacobian_norm`: how the dynamics change from point to point (ibid., section 3.2);
* `total_derivative(order)`: how the path bends in time, the derivative that limits a solver of that order (Kelly et
  al. 2020, *Learning differential equations that are easy to solve*, section 3).

Any other function of `OnPath` will do as well. `RegularizedBlock` and `RegularizedFlow` are `OdeBlock` and
`ContinuousFlow` with costs; `WithRunningCosts` is for models of one's own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError
from neural_ode.nn.continuous_flow import ContinuousFlow, Transported, WithLogDensity, jvp
from neural_ode.nn.base_distribution import check_points
from neural_ode.nn.ode_block import OdeBlock
from neural_ode.solve import solve

__all__ = [
    "OnPath",
    "RegularizedBlock",
    "RegularizedFlow",
    "RunningCost",
    "WithRunningCosts",
    "jacobian_norm",
    "kinetic_energy",
    "total_derivative",
]
