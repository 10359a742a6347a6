"""What all tests share."""

import subprocess
import sys
from pathlib import Path

import pytest

HANGING = """
import pytest
from hypothesis import given, strategies


@pytest.mark.limit(0.5)
@given(strategies.integers())
def test_for_ever(n):
    while True:
        try:
            n += 1
        except Exception:
            pass


def test_after_it():
    pass
"""


@pytest.mark.slow
def test_a_test_that_does_not_end_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "test_hanging.py").write_text(HANGING)
    command = [sys.executable, "-m", "pytest", "--strict-markers", "--numprocesses", "1", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "StillRunningError: after 0.5 seconds" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
