"""What the loops expect of a method."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from neural_ode.control.controllers import IntegralController
from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError
from neural_ode.problem.state import Dynamics

__all__ = ["Capabilities", "Carry", "Method", "Next", "Ratio", "Step"]

Ratio = Callable[[Tensor], float]
"""The size of a local error over what is tolerated in this step; at most 1 passes."""


Carry: TypeAlias = Tensor | tuple[object, ...] | None
"""What a step starts from besides its state: the slope there, or a named tuple with a method's history, which only
that method looks into; `None` if nothing is known. Loops keep its tensors and numbers apart, see `frame_of`."""


class Step(NamedTuple):
    """What one step produces.

    Attributes:
        y1: the state after the step.
        error: estimate of the local error, or `None` where the method has none.
        dense: what `Method.interpolate` needs to find states inside the step. Its first entry is a slope at the
            start of the step, shaped like `y1`.
        carry: what the next step starts from if this one is accepted; `None` if it starts from `y1` alone.
        nfe: evaluations of the dynamics that the step cost.
        converged: whether the equations of the step are solved, where a method goes on all the same.
    """

    y1: Tensor
    error: Tensor | None
    dense: tuple[Any, ...]
    carry: Carry
    nfe: int
    converged: bool = True


class Next(NamedTuple):
    """What decides the next step.

    Attributes:
        carry: what it starts from.
        err: error ratio that its length is chosen by.
        order: the error of a step is proportional to the power `order` of its length.
    """

    carry: Carry
    err: float
    order: int


class Capabilities:
    """What a solver says of itself. A solve is refused, or made in another way, by what stands here.

    Attributes:
        name: the usual name.
        options: names of what `configured` can change.
        adaptive: whether it estimates its error.
        shows_steps: whether it makes the steps of a loop here, to record, to measure and to go back through.
        has_dense_output: whether it has a continuous extension.
        own_steps: whether it chooses its steps by rules that a grid or another controller would break.
        largest_weight: the most that the length of a step is multiplied by: it has to be a number of the dtype.
        supports_events: whether a solve can end where a function of time and state crosses zero.
        supports_rows: whether every row of a batch can have steps of its own, if it estimates its error.
        supports_compile: whether `torch.compile` can make its steps.
        supports_quadrature: whether an integral can be summed over the stages of its steps.
        supports_reversal: whether it has a form whose steps can be undone.
    """

    name: str
    options: frozenset[str] = frozenset()
    adaptive: bool
    shows_steps: bool
    has_dense_output: bool = False
    own_steps: bool = False
    largest_weight: float = 1.0
    supports_events: bool = False
    supports_rows: bool = False
    supports_compile: bool = False
    supports_quadrature: bool = False
    supports_reversal: bool = False


class Method(Capabilities, ABC):
    """One way to make a step. Has no state: what a step needs of earlier ones comes in as `carry`.

    Attributes:
        order: order of the solution that is propagated.
        has_history: whether `carry` holds more than the slope at the start of the step, which can be found again.
    """

    order: int
    shows_steps = True
    supports_events = True
    has_history: bool = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def for_tolerance(self, tolerance: Tolerance) -> "Method":
        """The method for a solve with this tolerance; methods that iterate stop where it says."""
        return self

    def controlled(self, controller: IntegralController) -> "Method":
        """The method for a solve whose steps this controller chooses; for methods with rules of their own."""
        return self

    def configured(self, **options: Any) -> "Method":
        """The method with other values of its `options`."""
        raise InvalidArgumentError(f"{self.name} has no options, got {', '.join(options)}")

    def begin(self, slope: Tensor) -> Carry:
        """The `carry` of a first step, and of a step after a discontinuity, where the slope is `f(t, y)`."""
        return slope

    @abstractmethod
    def step(self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Carry) -> Step:
        """Advance `y` from `t` by `h`.

        Args:
            f: the dynamics.
            t: the time, float64, shape () and differentiable where gradients with respect to the times are
                wanted. With a step for each sample: shape (batch,).
            y: the state, any shape.
            h: the step, negative in reverse time. A number makes the fewest operations and saves nothing for
                the backward pass; a tensor of shape () is differentiated through. With a step for each sample:
                shape (batch, 1, …), to be multiplied with the state.
            carry: of the step before, or from `begin`; `None` if nothing is known.
        """

    @abstractmethod
    def interpolate(self, y: Tensor, dense: tuple[Any, ...], h: Tensor | float, theta: Tensor) -> Tensor:
        """The continuous extension.

        Args:
            y: the state at the start of the step.
            dense: of the step.
            h: its length.
            theta: where in the step, 0 to 1, shape (m,), in the real dtype of `y`.

        Returns:
            Tensor of shape (m, *y.shape).
        """

    def after(self, step: Step, carry: Carry, err: float, ratio: Ratio) -> Next:
        """How to go on after a step with the error ratio `err`: accepted if `err <= 1`, else to be repeated.

        Args:
            step: the step just made.
            carry: what it started from.
            err: its error ratio.
            ratio: measures further errors as `err` was measured, for methods that choose their order.
        """
        return Next(step.carry if err <= 1 else carry, err, self.order)

    def continued(self, carry: Carry, frame: Carry) -> Carry:
        """What an accepted step started from, computed from the `carry` of the step before, or from `begin`.

        They differ where attempts were rejected in between and the method changed its `carry` in reply.

        Args:
            carry: of the step before.
            frame: what the accepted step started from, without its tensors.
        """
        return carry
