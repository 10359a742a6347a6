"""Progress bars: where somebody looks, in a terminal or a notebook, and nowhere else."""

import sys
from typing import Any

from neural_ode.errors import needs

with needs("notebooks"):
    import tqdm as bars

__all__ = ["tqdm"]


def tqdm(*arguments: Any, **options: Any) -> "bars.tqdm[Any]":
    """A progress bar of tqdm, which is off in a log file."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return bars.tqdm(*arguments, **{"disable": not watched, **options})
