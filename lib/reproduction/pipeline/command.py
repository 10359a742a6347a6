"""What the commands of the pipeline have in common."""

import sys
from collections.abc import Callable

from neural_ode.errors import NeuralODEError

__all__ = ["exit_status"]


def exit_status(work: Callable[[], None]) -> int:
    """0, or 1 if `work` raises an error that is meant for the user, who sees its message and no traceback."""
    try:
        work()
    except NeuralODEError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0
