"""Shared by all tests."""

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import hypothesis
import pytest
import torch

from reproduction.workspace import project_root

# The same examples every time, and no limit on their time, which says more about the machine than about the code.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("project")

LIMIT, LONG_LIMIT = 600, 1800
"""Seconds after which a test has gone on for ever; the second one for those that start programs of their own."""


class StillRunningError(BaseException):
    """No `Exception`: what is tested catches those, and hypothesis would go on to look for a simpler one."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"limit(seconds): fails after so long, instead of {LIMIT} seconds")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that does not end, with a traceback that shows where it is."""
    if not hasattr(signal, "setitimer"):  # Windows
        return (yield)
    marker = item.get_closest_marker("limit")
    long = any(item.get_closest_marker(name) for name in ("slow", "browser", "site"))
    seconds = marker.args[0] if marker else LONG_LIMIT if long else LIMIT

    def stop(number: int, frame: FrameType | None) -> None:
        raise StillRunningError(f"after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def root() -> Path:
    return project_root(Path(__file__))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of the tests marked `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device("cuda")
