"""Training on several GPUs or machines: each process takes its share of every batch, and gradients are summed.

    torchrun --nproc-per-node 2 ...

starts the processes; `processes` joins them, and `fit_together` is `fit` for all of them. It is PyTorch's
`DistributedDataParallel` with three things seen to:

* The batch of a step is that of a single process, so the training is the same one, however many share it. So is
  the loss, of which every process differentiates its part.
* The loss in the history, and the one that stops a training that diverged, is that of the whole batch.
* All processes resume from the first one's checkpoint: their own would be of different steps.

**What autograd sees of an ODE block.** `DistributedDataParallel` collects a parameter's gradient when autograd
hands it over. With `gradient="direct"` the graph leads through every step of the solver, as through any network.
The adjoint method and the choices that make steps again keep no such graph: their forward solve uses the
parameters of `f` unseen. Autograd knows of them for one reason, that `solve` hands `f.parameters()` to its
`autograd.Function` beside `y0`. Inside of the backward solve their gradients are asked for by value, which
collects nothing; the totals leave the function at its end and are collected then, once, but not before the whole
solve is done. Nothing of this sees a tensor that `f` uses without being a module that owns it: such a one needs
`params=`, and whoever trains it has to sum it over the processes.

**Error control.** Every process solves its share by itself, with the steps that this share needs. On a grid, and
with `batched=True`, where every example has its own steps anyway, the result is that of one process up to
rounding. With joint steps it differs by what the tolerance leaves open, and for the gradient of the adjoint method
a loose tolerance leaves much open.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from neural_ode.errors import InvalidArgumentError
from reproduction.training.loop import Fit, Row, fit

__all__ = ["data_parallel", "fit_together", "processes"]


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started.

    Args:
        device: CUDA, over which NCCL communicates, or the CPU, with Gloo.

    Yields:
        The device of this process: with CUDA, one of its own.

    Raises:
        InvalidArgumentError: torchrun has not started this process.
    """
    if "LOCAL_RANK" not in os.environ:
        raise InvalidArgumentError(f"start it with torchrun: torchrun --nproc-per-node 2 {' '.join(sys.argv)}")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def data_parallel(task: Fit) -> Fit:
    """The same training, of which this process does its share.

    Args:
        task: its model is on the device of this process, and the same one in all processes. `batch` gives the
            whole batch, a tensor or tuples of tensors, a row for each example; `loss` is a mean over the rows, and
            calls the model itself, not its methods or parts.

    Returns:
        A task with the same model, whose gradients are summed over all processes whenever they are computed
        through `loss`.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    parallel = DistributedDataParallel(task.model)
    parallel.register_comm_hook(None, _sum)

    def batch(step: int) -> Any:
        return _share(task.batch(step), rank, count)

    def loss(model: nn.Module, share: Any) -> Tensor:
        # A part of the mean over the whole batch, not the mean over the share: the adjoint method solves for its
        # gradient, and to that the absolute tolerance applies.
        part = task.loss(parallel, share) / count
        whole = part.detach().clone()
        dist.all_reduce(whole)
        return part + (whole - part.detach())  # the value is the whole, the gradient that of the part

    return replace(task, batch=batch, loss=loss)


def fit_together(task: Fit, checkpoint: Path | None = None) -> list[Row]:
    """`fit` in all processes at once; see there and `data_parallel`.

    Args:
        task: the training of a single process.
        checkpoint: of the first process, which alone shows its progress. The others need not have it.

    Returns:
        The history. Numbers of evaluations and seconds are the first process's.
    """
    with ExitStack() as stack:
        if dist.get_rank() > 0:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(redirect_stderr(stack.enter_context(Path(os.devnull).open("w"))))
            own = None if checkpoint is None else Path(folder) / checkpoint.name
        else:
            own = checkpoint
        if checkpoint is not None and own is not None:
            _copy_from_first(checkpoint, own)
        return fit(data_parallel(task), own)


# Ignored by the type checker: DistributedDataParallel insists on this annotation, which PyTorch does not declare.
def _sum(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Add up gradients, where `DistributedDataParallel` would average them."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _copy_from_first(source: Path, target: Path) -> None:
    """Give every process the first one's file, if there is one."""
    first = dist.get_rank() == 0
    content = [source.read_bytes() if first and source.exists() else None]
    dist.broadcast_object_list(content)
    if not first and content[0] is not None:
        target.write_bytes(content[0])


def _share(batch: Any, rank: int, processes: int) -> Any:
    """Every `processes`-th row, beginning with row `rank`.

    Raises:
        InvalidArgumentError: the shares are not equal, and so the mean of their means not that of the batch.
    """
    if not isinstance(batch, Tensor):
        return tuple(_share(part, rank, processes) for part in batch)
    if len(batch) % processes:
        raise InvalidArgumentError(f"a batch of {len(batch)} cannot be shared evenly by {processes} processes")
    return batch[rank::processes]
