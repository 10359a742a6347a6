"""Shared by all tests."""

from pathlib import Path

import hypothesis
import pytest
import torch

from neural_ode.workspace import project_root

# The same examples every time, and no limit on their time, which says more about the machine than about the code.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("project")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    return project_root(Path(__file__))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of the tests marked `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device("cuda")
