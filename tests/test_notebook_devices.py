"""The notebooks' own code puts no tensor in the wrong place: they run on a device that is not there."""

import ast
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

from pretend_device import DEVICE, pretend_device
from reproduction.workspace import DRAW_VARIABLE, OUTPUT_VARIABLE

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SMALL: dict[str, dict[str, Any]] = {
    "01_depth": {"iterations": 20, "steps": [5, 10, 20]},
    "02_adjoint": {
        "tolerances": [1e-1, 3e-2, 1e-2],
        "count_tolerances": [1e-2],
        "training": 2,
        "flow_training": 1,
        "black_box_training": 1,
        "seminorm_tolerances": [1e-1],
        "seminorm_scales": [1.0],
        "seminorm_training": 1,
    },
    "08_spirals": {
        "observations": [30],
        "train_series": 8,
        "test_series": 8,
        "batch_size": 4,
        "steps": 4,
        "rnn_steps": 4,
        "rnn_lengths": [2],
        "variant_steps": 2,
        "recipes": {"latent ODE": [{}, {"lr": 3e-3}], "RNN": [{}], "RNN with times": [{}, {"batch_size": 8}]},
        "search_steps": 2,
    },
    "12_latent_paths": {
        "observations": [30],
        "train_series": 100,
        "test_series": 8,
        "steps": 4,
        "remedies": {
            "path penalty": {"0.1": {"path": 0.1}, "1": {"path": 1.0}},
            "consistency": {"1": {"consistency": 1.0}},
            "centred spirals": {"unchanged": {"batch_size": 4}},
        },
        "search_steps": 2,
    },
    "09_extrapolation": {
        "observations": [30],
        "centred_seeds": [0, 1],
        "series": 8,
        "samples": 2,
        "curves": 7,
    },
    "10_poisson": {
        "rates": ["decaying"],
        "sequences": 4,
        "test_sequences": 4,
        "batch_size": 4,
        "steps": 4,
        "joint_series": 4,
        "joint_test_series": 4,
        "joint_batch_size": 4,
        "joint_steps": 2,
        "study_seeds": [0],
        "study_steps": 2,
    },
}


def run(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Run the code of a notebook; its variables at the end. What it asserts of good results is left out."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        tree.body = [line for line in tree.body if not isinstance(line, ast.Assert)]
        exec(compile(tree, name, "exec"), variables)
        if "parameters" in cell.metadata.get("tags", []):
            assert changes.keys() <= variables.keys(), "no such parameter"
            variables |= changes
    return variables


@pytest.mark.parametrize("name", SMALL)
def test_on_another_device(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the pipeline has computed would be read instead of being computed on that device.
    empty = tmp_path / "project"
    empty.mkdir()
    (empty / "data").symlink_to(NOTEBOOKS.parent / "data")
    if name == "02_adjoint":  # of notebook 04, it takes the weights of a network
        weights = Path("results", "quick", "04_mnist", "ODE-Net-0.safetensors")
        (empty / weights.parent).mkdir(parents=True)
        (empty / weights).symlink_to(NOTEBOOKS.parent / "results" / "paper" / "04_mnist" / weights.name)
    monkeypatch.setattr("reproduction.workspace.project_root", lambda: empty)
    monkeypatch.setenv(OUTPUT_VARIABLE, str(tmp_path))
    monkeypatch.delenv(DRAW_VARIABLE, raising=False)
    small = {
        "MAX_STEPS": (15, ("adjoint.errors", "adjoint.evaluations", "adjoint.reversal")),
        "REFERENCE": (1e-3, ("trials", "adjoint.derivatives")),
    }
    for constant, (value, modules) in small.items():  # the device is slow
        for module in modules:
            monkeypatch.setattr(f"reproduction.experiments.{module}.{constant}", value)
    before = {"12_latent_paths": ["08_spirals"], "09_extrapolation": ["08_spirals", "12_latent_paths"]}
    for other in before.get(name, ()):
        run(other, SMALL[other])
    moved, move = set(), torch.nn.Module.to

    def noted(module: torch.nn.Module, *where: Any, **more: Any) -> torch.nn.Module:
        moved.update(x for x in where if isinstance(x, torch.device))
        return move(module, *where, **more)

    monkeypatch.setattr(torch.nn.Module, "to", noted)
    with pretend_device():
        run(name, {**SMALL[name], "device": DEVICE.type})
    plt.close("all")
    assert DEVICE in moved, "no model was there"
