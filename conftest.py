"""Which files of tests several processes may run at the same time."""

from typing import Any

from xdist.scheduler import LoadFileScheduling

READS = {
    "notebooks/05_tolerance.ipynb": "notebooks/04_mnist.ipynb",
    "notebooks/09_extrapolation.ipynb": "notebooks/08_spirals.ipynb",
}
"""Notebooks that read weights, and those that make them: one process runs both, in order."""


class _OneFileOneProcess(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return READS.get(file, file)


def pytest_xdist_make_scheduler(config: Any, log: Any) -> _OneFileOneProcess:
    """All tests of a file, and of the files that it reads from, go to one process."""
    return _OneFileOneProcess(config, log)
