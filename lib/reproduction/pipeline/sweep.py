"""Run the trainings of a notebook as a sweep, before the notebook: on several cores, or on a cluster.

python -m reproduction.pipeline.sweep mnist --profile paper --workers 4
"""

import argparse
import sys

from reproduction.pipeline.command import exit_status
from reproduction.pipeline.mnist import sweep_mnist
from reproduction.workspace import project_root

__all__ = ["main"]

SWEEPS = {"mnist": sweep_mnist}


def main(arguments: list[str] | None = None) -> int:
    """Run the trainings of the notebook that the command line names; the exit status."""
    parser = argparse.ArgumentParser(description="Run the trainings of a notebook as a sweep.")
    parser.add_argument("name", choices=SWEEPS, help="the notebook, without its number")
    parser.add_argument("--profile", default="quick", help="names the file of parameters in params/")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes on this machine; by default the scheduler in DASK_SCHEDULER_ADDRESS, else none",
    )
    options = parser.parse_args(arguments)
    return exit_status(lambda: SWEEPS[options.name](project_root(), options.profile, options.workers))


if __name__ == "__main__":
    sys.exit(main())
