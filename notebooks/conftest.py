"""nbval runs the notebooks in here: their results go to a folder of their own, never into those of the pipeline."""

import os
import tempfile

import pytest

_output = tempfile.TemporaryDirectory(prefix="neural-ode-")
os.environ["NEURAL_ODE_OUTPUT"] = _output.name


def pytest_unconfigure(config: pytest.Config) -> None:
    _output.cleanup()
