"""What the runs of notebooks 06 and 07 have in common: how flows are trained, and read again to be measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from neural_ode.nn import ContinuousFlow
from reproduction.models.flows import PlanarFlow
from reproduction.results import Run
from reproduction.sweep import Point
from reproduction.training.flows import continuous_flow

__all__ = ["candidates", "load_flow", "measured", "recipes", "trial_training"]

SPAN = 1.0
"""Length of the continuous flows in time."""


def recipes(continuous: Mapping[str, float], planar: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """How flows of each kind, `NF` and `CNF`, are trained, but for the learning rate.

    Args:
        continuous, planar: see `reproduction.training.flows`: `iterations`, `batch` and `annealing`, for continuous
            flows also `hidden` and `records`.
    """

    def whole(given: Mapping[str, float], *names: str) -> dict[str, Any]:
        return {**given, **{name: int(given[name]) for name in ("iterations", "batch", *names)}}

    return {"NF": whole(planar), "CNF": {**whole(continuous, "hidden", "records"), "span": SPAN}}


def trial_training(recipe: Mapping[str, Any], share: float, rate: float) -> dict[str, Any]:
    """The training of a trial: with a share of the iterations."""
    return {**recipe, "iterations": round(share * recipe["iterations"]), "rate": rate}


def candidates(rates: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """The learning rates of each kind of flow, by name."""
    return {kind: {f"{rate:g}": rate for rate in choices} for kind, choices in rates.items()}


def measured(run: Run, kind: str, size: int, **how: Any) -> dict[str, Any]:
    """What identifies a trained flow among the settings of a measurement.

    Args:
        run: of its training.
        kind: `"NF"` for a planar flow, `"CNF"` for a continuous one.
        size: its layers or units.
        **how: of a planar flow what it `leads_to`, of a continuous one the width of the hypernetwork, `hidden`, and
            the `tolerance` of its solves.
    """
    return {"kind": kind, "size": size, **how, "weights": run.identity(".safetensors")}


def load_flow(flow: Point, runs: Mapping[str, Run]) -> Any:
    """The flow that `measured` describes, on the CPU: a `PlanarFlow` or a `ContinuousFlow`.

    Args:
        flow: as `measured` gives it.
        runs: trainings, by the checksum of their weights.
    """
    model: PlanarFlow | ContinuousFlow
    if flow["kind"] == "NF":
        model = PlanarFlow(2, flow["size"], flow["leads_to"])
    else:
        solver = {"rtol": flow["tolerance"], "atol": flow["tolerance"]}
        model = continuous_flow(flow["size"], {"hidden": flow["hidden"], "span": SPAN}, solver)
    runs[flow["weights"]].load(model)
    return model
