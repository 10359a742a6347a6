"""How long something takes, also on a device that works on after the call has returned."""

import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["seconds_of"]


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of wall-clock time that `work()` takes, until the device has finished it."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
