"""Layers and flows that solve an ordinary differential equation, to build models of."""

from neural_ode.nn.continuous_flow import ContinuousFlow
from neural_ode.nn.ode_block import OdeBlock

__all__ = ["ContinuousFlow", "OdeBlock"]
