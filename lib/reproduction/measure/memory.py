"""Memory of a training step: what is kept for the backward pass, and the true peak.

What autograd keeps is counted exactly, by its saved-tensor hooks. The peak is the device's or, on a CPU, the
operating system's figure for a process that does nothing else.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import resource
import sys
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["bytes_kept", "in_fresh_process", "peak_memory"]

Result = TypeVar("Result")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's mallopt
PR_SET_THP_DISABLE = 41  # of Linux's prctl


class _Kept:
    """A saved tensor. It dies with the node of the graph that saved it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def bytes_kept(forward: Callable[[], Tensor], known: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps between `forward()` and its backward pass.

    Every storage counts once, however many operations saved a view of it. Those of `known` (inputs and
    parameters, which exist anyway) do not count; neither does what a forward pass computes and drops again.

    Args:
        forward: returns the tensor to differentiate.
        known: tensors that are not to be counted.
    """
    alive: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach())  # an output that held its own node would never be freed
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = forward()
    storages = {k.tensor.untyped_storage().data_ptr(): k.tensor.untyped_storage().nbytes() for k in alive}
    for tensor in known:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del result  # only now: it holds the graph
    return sum(storages.values())


def peak_memory(work: Callable[[], Any], device: torch.device) -> int:
    """By how many bytes memory grows, at its highest, while `work` runs.

    On CUDA, the allocator's count. On a CPU, resident memory of the process: run `work` once before, so that
    libraries are loaded, and measure each case in a process of its own (`in_fresh_process`).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    _steady_allocator()
    _reset_resident_peak()
    before = _resident("VmRSS")
    work()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    """Resident memory of this process in bytes: `VmRSS`, now, or `VmHWM`, its highest value."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_resident_peak() -> None:
    with contextlib.suppress(OSError):  # else the peak since the process began counts: no lower than the true one
        Path("/proc/self/clear_refs").write_text("5")


def _steady_allocator() -> None:
    """On Linux, make resident memory follow what is in use: no huge pages, and freed blocks go back at once."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    libc.mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    libc.mallopt(M_TRIM_THRESHOLD, 64 * 1024)
    libc.mallopt(M_ARENA_MAX, 1)
    libc.malloc_trim(0)


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of a module in a process of its own, forked from one that has loaded this library only.

    Exceptions come back as they are.

    Raises:
        concurrent.futures.process.BrokenProcessPool: the process died, for want of memory perhaps.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", function.__module__])
    with ProcessPoolExecutor(1, mp_context=context, initializer=_steady_allocator) as executor:
        return executor.submit(function, *arguments).result()
