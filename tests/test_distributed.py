"""Training in several processes: what two of them compute is what one computes."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from neural_ode.errors import InvalidArgumentError
from reproduction.data.mnist import Mnist, load_splits
from reproduction.experiments.mnist import recipe
from reproduction.pipeline.parameters import notebook_parameters
from reproduction.training.distributed import _share, processes
from reproduction.training.loop import read_history
from reproduction.training.mnist import train_classifier

ROOT = Path(__file__).parents[1]

TASK = '''
"""A small training with an ODE block, run by `main` in every process of torchrun."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from neural_ode.errors import NonFiniteError
from reproduction.models.mnist import ConvDynamics, MnistNet
from neural_ode.nn.ode_block import OdeBlock
from reproduction.training.distributed import data_parallel, fit_together, processes
from reproduction.training.loop import Fit, fit
from reproduction.training.mnist import classification_loss

GRID = {"method": "dopri5", "step_size": 0.5}
CASES = {
    "adjoint": {"gradient": "backsolve", **GRID},
    "adjoint, stored": {"gradient": "interpolating", **GRID},
    "direct": {"gradient": "direct", **GRID},
    "recursive_checkpoint": {"gradient": "recursive_checkpoint", **GRID},
    "adjoint, steps for each row": {"gradient": "backsolve", "batched": True, "rtol": 1e-4, "atol": 1e-4},
    "adjoint, joint steps": {"gradient": "backsolve", "rtol": 1e-4, "atol": 1e-4},
}


class Still(ConvDynamics):
    """The same field at all times: rows may have their own."""

    def forward(self, t, z):
        return super().forward(z.new_zeros(()), z)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(4, 1, 28, 28, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (4,), generator=generator)


def training(case, epochs=2, seed=0):
    torch.manual_seed(seed)
    f = Still() if "batched" in CASES[case] else ConvDynamics()
    model = MnistNet(OdeBlock(f, **CASES[case])).double()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Fit(
        model=model,
        loss=classification_loss,
        batch=batch,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        steps=2 * epochs,
        epochs=epochs,
        evaluate=lambda model: {},
        settings={"case": case},
        code=Path(__file__),
        label=case,
    )


def diverging():
    model = torch.nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    return replace(
        training("direct"),
        model=model,
        loss=lambda model, rows: model(rows).mean(),
        batch=lambda step: torch.tensor([[1.0], [float("nan")]]),
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, lambda step: 1.0),
    )


def gradients(task):
    task.loss(task.model, task.batch(0)).backward()
    found = {name: parameter.grad.clone() for name, parameter in task.model.named_parameters()}
    task.optimizer.zero_grad()
    return found


def main(folder):
    found = {}
    with processes(torch.device("cpu")) as device:
        rank = dist.get_rank()
        for case in CASES:
            found[case] = gradients(data_parallel(training(case)))
        whole = training("adjoint")
        found["history"] = fit_together(whole)
        found["weights"] = whole.model.state_dict()
        # Interrupted after an epoch, and begun again with other weights. Only the first process has the checkpoint.
        checkpoint = folder / f"{rank}" / "checkpoint.pt"
        fit_together(training("adjoint", epochs=1), checkpoint)
        assert checkpoint.exists() == (rank == 0)
        resumed = training("adjoint", seed=1)
        fit_together(resumed, checkpoint)
        found["resumed"] = resumed.model.state_dict()
        # A loss that is NaN in the share of one process stops both, and neither waits for the other.
        try:
            fit_together(diverging())
        except NonFiniteError:
            found["stopped"] = True
        torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
'''


def torchrun(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    path = os.pathsep.join([str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def distance(found: dict, expected: dict) -> float:
    """The largest difference of a tensor, relative to its norm, which must not vanish."""
    assert found.keys() == expected.keys()
    assert all(expected[name].norm() > 0 for name in expected)
    return max(((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    torchrun("task.py", str(tmp_path), folder=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))

    task: dict = {"__name__": "task", "__file__": str(tmp_path / "task.py")}
    exec(TASK, task)
    for case in task["CASES"]:
        alone = task["gradients"](task["training"](case))
        # Up to rounding, unless every process takes steps of its own.
        assert distance(first[case], alone) < (0.3 if case == "adjoint, joint steps" else 1e-11), case
        assert all(torch.equal(first[case][name], second[case][name]) for name in alone), case

    alone = task["training"]("adjoint")
    history = task["fit"](alone)
    assert distance(first["weights"], alone.model.state_dict()) < 1e-11
    assert [row["loss"] for row in first["history"]] == pytest.approx([row["loss"] for row in history], rel=1e-11)
    for found in (first, second):
        assert all(torch.equal(found["resumed"][name], weight) for name, weight in found["weights"].items())
        assert found["stopped"]


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    for name in ("data", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "params").mkdir()
    sizes = "{train_size: 64, validation_size: 10, test_size: 10, epochs: 2, device: cpu}"
    (tmp_path / "params" / "tiny.yaml").write_text(f"04_mnist: {sizes}\n")
    shown = torchrun("-m", "reproduction.pipeline.distributed", "MLP", "--profile", "tiny", folder=tmp_path)
    made = tmp_path / "scratch" / "results" / "tiny" / "04_mnist_distributed"
    assert shown.count("test error") == 1

    given = notebook_parameters(tmp_path, "04_mnist", "tiny")
    how = recipe(**{name: given[name] for name in inspect.signature(recipe).parameters})
    data = load_splits(tmp_path / "data" / "mnist", [given[f"{split}_size"] for split in Mnist._fields])
    alone, history = train_classifier("MLP", 0, data, how["training"], how["solver"])
    found = safetensors.torch.load_file(made / "MLP-0.safetensors")
    assert distance(found, alone.state_dict()) < 1e-5
    rows = read_history(made / "MLP-0.csv")
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in history], rel=1e-5)


def test_shares() -> None:
    batch = torch.arange(6), (torch.arange(12).reshape(6, 2),)
    numbers, (pairs,) = _share(batch, 1, 3)
    assert numbers.tolist() == [1, 4]
    assert pairs.tolist() == [[2, 3], [8, 9]]
    with pytest.raises(InvalidArgumentError, match="a batch of 6 cannot be shared evenly by 4 processes"):
        _share(batch, 0, 4)


def test_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InvalidArgumentError, match="torchrun --nproc-per-node 2"), processes(torch.device("cpu")):
        pass
