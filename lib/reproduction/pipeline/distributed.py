"""Train one network of notebook 04 on several GPUs or machines.

    torchrun --nproc-per-node 2 -m reproduction.pipeline.distributed ODE-Net --profile gpu

The batch is that of the profile, shared by the processes. With error control each of them takes the steps that its
share needs, so this is another run than the notebook's; its weights and history go to
`scratch/results/<profile>/04_mnist_distributed/`.
"""

import argparse
import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from reproduction.data.mnist import Mnist, load_splits
from reproduction.experiments.mnist import NOTEBOOK, recipe
from reproduction.models.mnist import MNIST_MODELS
from reproduction.pipeline.command import exit_status
from reproduction.pipeline.parameters import notebook_parameters
from reproduction.training.distributed import fit_together, processes
from reproduction.training.loop import Row
from reproduction.training.mnist import classifier_task, error_rate
from reproduction.training.weights import save_run
from reproduction.workspace import Workspace, choose_device

__all__ = ["main", "train_together"]


def train_together(
    name: str,
    seed: int,
    data: Mnist,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: torch.device,
    checkpoint: Path | None = None,
) -> tuple[nn.Module, list[Row]]:
    """`train_classifier` by all processes; `device` is this one's."""
    task, count = classifier_task(name, seed, data, training, solver, device), dist.get_world_size()
    task = replace(
        task,
        settings={**task.settings, "device": device.type, "processes": count},
        code=Path(__file__),
        label=f"{task.label}, {count} processes",
    )
    return task.model, fit_together(task, checkpoint)


def main(arguments: list[str] | None = None) -> int:
    """Train the network that the command line names; the exit status."""
    parser = argparse.ArgumentParser(description="Train one network of notebook 04 in several processes.")
    parser.add_argument("network", choices=MNIST_MODELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", default="quick", help="names the file of parameters in params/")
    options = parser.parse_args(arguments)

    def work() -> None:
        place = Workspace.open(f"{NOTEBOOK}_distributed", options.profile)
        given = notebook_parameters(place.root, NOTEBOOK, options.profile)
        how = recipe(**{name: given[name] for name in inspect.signature(recipe).parameters})
        sizes = [given[f"{split}_size"] for split in Mnist._fields]
        data = load_splits(place.root / "data" / "mnist", sizes)
        run, target = f"{options.network.replace(' ', '-')}-{options.seed}", place.store.target
        assert target is not None
        checkpoint = place.store.checkpoints / f"{run}.pt"
        with processes(choose_device(given["device"])) as device:
            model, history = train_together(
                options.network, options.seed, data, how["training"], how["solver"], device, checkpoint
            )
            if dist.get_rank() == 0:
                save_run(model, history, target, run)
                print(f"test error {error_rate(model, data.test):.2f} %, wrote {target / run}.safetensors")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
