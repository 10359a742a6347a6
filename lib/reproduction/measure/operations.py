"""How many arithmetic operations a computation with tensors takes: counted, where time is noisy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from neural_ode.errors import UnknownNameError

__all__ = ["OperationCounter"]

Count = Callable[[Sequence[Any], Tensor], int]


def _none(arguments: Sequence[Any], made: Tensor) -> int:
    """Of what moves or creates numbers."""
    return 0


def _one_each(arguments: Sequence[Any], made: Tensor) -> int:
    """Of an elementwise function, also of one such as tanh."""
    return made.numel()


def _product(arguments: Sequence[Any], made: Tensor) -> int:
    """Of a product of matrices: a multiplication and an addition for each term."""
    terms: int = arguments[0].shape[-1]
    return 2 * made.numel() * terms


def _sum(arguments: Sequence[Any], made: Tensor) -> int:
    """Of a reduction."""
    terms: int = arguments[0].numel()
    return terms


NAMES: Mapping[Count, str] = {
    _none: "clone copy detach diagonal eye permute select slice t transpose unsqueeze view",
    _one_each: "abs add div log mul pow rsub sigmoid sub tanh",
    _product: "mm mv",
    _sum: "sum",
}

COUNTS: Mapping[str, Count] = {name: count for count, names in NAMES.items() for name in names.split()}
"""By the name of the operator, whatever its overload, and whether it works in place."""


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's has no annotations
    """Counts the arithmetic operations of a block, one for each number that each of them makes.

    PyTorch's own counter, `torch.utils.flop_counter`, counts products of matrices and convolutions, but nothing
    elementwise, no product of a matrix and a vector, and no decomposition of a matrix. An operator that is not
    known here is an error, so that nothing goes uncounted.

        with OperationCounter() as counter:
            y = torch.tanh(x @ w)
        counter.total

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor has this
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do what was asked for, and count it.

        Raises:
            UnknownNameError: it is not known how much work that is.
        """
        name = func.overloadpacket.__name__
        known = name.removesuffix("_")
        if known not in COUNTS:
            raise UnknownNameError("operator", name, COUNTS)
        made = func(*args, **(kwargs or {}))
        self.total += COUNTS[known](args, made)
        return made
