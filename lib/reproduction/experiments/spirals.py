"""The runs of Table 2: one description for training, and for whoever reads the weights later."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from neural_ode.errors import UnknownNameError
from reproduction.data.spirals import Spirals, draw_spirals
from reproduction.measure.prediction import latent_ode_errors, rnn_errors
from reproduction.models.latent_ode import LatentODE, spiral_latent_ode
from reproduction.models.rnn import NextObservationRNN
from reproduction.training.loop import Row
from reproduction.training.spirals import train_latent_ode, train_rnn
from reproduction.training.weights import load_weights, save_run
from reproduction.workspace import Workspace

__all__ = [
    "BASE",
    "RNNS",
    "VARIANTS",
    "Setting",
    "latent_ode_run",
    "rnn_run",
    "spirals_for",
    "trained_latent_ode",
    "trained_rnn",
]

RNNS = {"RNN": False, "RNN with times": True}
"""The baselines, and whether they are told the time to the next observation."""

NOTEBOOK = "08_spirals"
TRAIN, VALIDATION, TEST = 0, 1, 2
"""Seeds of data are 3 · seed + one of these."""


@dataclass(frozen=True)
class Setting:
    """What can be varied, one thing at a time.

    Attributes:
        recipe: of the spirals.
        noise: its standard deviation.
        layers: hidden layers of the dynamics.
        with_times: whether the recognition network gets the times between observations.
        tolerance: of the solver, relative and absolute.
        double: computes in double precision, without which the paper's tolerance means nothing.
    """

    recipe: str = "example"
    noise: float = 0.1
    layers: int = 1
    with_times: bool = True
    tolerance: float = 1e-3
    double: bool = False

    @property
    def solver(self) -> Mapping[str, Any]:
        """Keyword arguments of `neural_ode.solve`."""
        return {"rtol": self.tolerance, "atol": self.tolerance}

    @property
    def model(self) -> Mapping[str, Any]:
        """Arguments of `spiral_latent_ode`."""
        return {"noise": self.noise, "layers": self.layers, "with_times": self.with_times}

    @property
    def dtype(self) -> torch.dtype:
        """Of data, model and solves."""
        return torch.float64 if self.double else torch.float32


BASE = Setting()

VARIANTS = {
    "noise 0.05": replace(BASE, noise=0.05),
    "noise 0.3": replace(BASE, noise=0.3),
    "two hidden layers": replace(BASE, layers=2),
    "mirrored spirals": replace(BASE, recipe="mirrored"),
    "no times in recognition": replace(BASE, with_times=False),
    "double precision": replace(BASE, double=True),
    "tolerance 1.5e-8": replace(BASE, tolerance=1.5e-8, double=True),
}
"""Each differs from `BASE` in one respect, but for the paper's tolerance, which needs double precision."""


def spirals_for(
    setting: Setting, series: int, observations: int, seed: int, split: int, inside: bool = True
) -> Spirals:
    """The series of a split: `TRAIN` with windows anywhere, the others by default with windows `inside`."""
    return draw_spirals(
        setting.recipe,
        series,
        observations,
        setting.noise,
        3 * seed + split,
        inside=inside and split != TRAIN,
        dtype=setting.dtype,
    )


def latent_ode_run(
    setting: Setting,
    observations: int,
    seed: int,
    series: tuple[int, int],
    training: Mapping[str, Any],
    folders: tuple[Path, Path],
    name: str = "base",
    device: str | torch.device = "cpu",
) -> Row:
    """Train a latent ODE, keep its weights, and measure its errors on test series.

    Args:
        setting: what is trained on what.
        observations: of each series.
        seed: of data and training.
        series: how many to train on; and to validate, and to test, on.
        training: see `train_latent_ode`; and `noise_factor`: the standard deviation that the likelihood assumes,
            over that of the data. More than 1 gives the prior of `z_t0` more weight.
        folders: for checkpoints and for weights.
        name: of the setting, for the files.
        device: where to train.

    Returns:
        The errors of `latent_ode_errors`, and `all windows`: beyond windows that may start anywhere, so that points
        beyond them lie where training never was; `validation`: `beyond` on validation series.
    """
    train = spirals_for(setting, series[0], observations, seed, TRAIN)
    validation = spirals_for(setting, series[1], observations, seed, VALIDATION)
    test = spirals_for(setting, series[1], observations, seed, TEST)
    file = run_name(name, observations, seed)
    assumed = {**setting.model, "noise": training["noise_factor"] * setting.noise}
    model, history = train_latent_ode(
        train, validation, seed, training, assumed, setting.solver, folders[0] / f"{file}.pt", device
    )
    save_run(model, history, folders[1], file)
    anywhere = spirals_for(setting, series[1], observations, seed, TEST, inside=False)
    return {
        **latent_ode_errors(model, test),
        "all windows": latent_ode_errors(model, anywhere)["beyond"],
        "validation": history[-1]["beyond"],
        "NFE": history[-1]["nfe_forward"],
        "ms per step": 1e3 * history[-1]["seconds"] / training["steps"],
    }


def rnn_run(
    kind: str,
    observations: int,
    seed: int,
    series: tuple[int, int],
    training: Mapping[str, Any],
    folders: tuple[Path, Path],
    device: str | torch.device = "cpu",
) -> Row:
    """Train a network of `RNNS` on the data of `BASE`; arguments and results as for `latent_ode_run`.

    Raises:
        UnknownNameError: there is no such network.
    """
    if kind not in RNNS:
        raise UnknownNameError("recurrent network", kind, RNNS)
    train = spirals_for(BASE, series[0], observations, seed, TRAIN)
    validation = spirals_for(BASE, series[1], observations, seed, VALIDATION)
    test = spirals_for(BASE, series[1], observations, seed, TEST)
    file = run_name(kind, observations, seed)
    model, history = train_rnn(train, validation, seed, training, RNNS[kind], folders[0] / f"{file}.pt", device)
    save_run(model, history, folders[1], file)
    anywhere = spirals_for(BASE, series[1], observations, seed, TEST, inside=False)
    return {
        **rnn_errors(model, test),
        "all windows": rnn_errors(model, anywhere)["beyond"],
        "validation": history[-1]["beyond"],
        "ms per step": 1e3 * history[-1]["seconds"] / training["steps"],
    }


def run_name(name: str, observations: int, seed: int) -> str:
    """Name of the files of a run."""
    return f"{name.replace(' ', '-')}-{observations}-{seed}"


def trained_latent_ode(work: Workspace, observations: int, seed: int) -> LatentODE:
    """The model of `BASE` that notebook 08 has trained.

    Raises:
        MissingResultError: it has not.
    """
    model = spiral_latent_ode(**BASE.model, **BASE.solver)
    load_weights(model, work.trained(NOTEBOOK, f"{run_name('base', observations, seed)}.safetensors"))
    return model


def trained_rnn(work: Workspace, kind: str, observations: int, seed: int) -> NextObservationRNN:
    """The network of `RNNS` that notebook 08 has trained.

    Raises:
        MissingResultError: it has not.
    """
    model = NextObservationRNN(2, 25, RNNS[kind])
    load_weights(model, work.trained(NOTEBOOK, f"{run_name(kind, observations, seed)}.safetensors"))
    return model
