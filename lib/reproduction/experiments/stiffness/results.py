"""The results of notebook 15."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from neural_ode.errors import needs
from reproduction.experiments.stiffness.costs import costs_run, network_costs_run
from reproduction.experiments.stiffness.gradients import choices, gradient_run
from reproduction.experiments.stiffness.network import StiffNetwork, network_run, snapshot
from reproduction.results import Run
from reproduction.training.weights import load_weights
from reproduction.workspace import Workspace

with needs("notebooks"):
    import pandas as pd

__all__ = ["NETWORK", "Results", "results"]

NETWORK = "trained network"


class Results(NamedTuple):
    """What notebook 15 shows.

    Attributes:
        costs: a row for each solve: `family` and `parameter` of the problem, for the trained network how many
            iterations it has been trained; and what `costs_of` gives.
        training: of the network: `iteration`, `loss`, and `nfe` of a solve of all its trajectories with dopri5.
        gradients: a row for each gradient; see `gradients_of`.
        network: after the last iteration.
    """

    costs: pd.DataFrame
    training: pd.DataFrame
    gradients: pd.DataFrame
    network: StiffNetwork


def results(
    work: Workspace,
    *,
    problems: Mapping[str, Sequence[float]],
    tolerances: Sequence[float],
    most_steps: int,
    repeats: int,
    network: Mapping[str, Any],
    gradient_rates: Sequence[float],
    gradient_tolerance: float,
    gradient_steps: int,
) -> Results:
    """Solve all problems with all solvers and tolerances, and differentiate; what is there is read.

    Args:
        work: of the notebook.
        problems: parameters by the name of a family in `FAMILIES`.
        tolerances, most_steps, repeats: see `costs_of`.
        network: how the network is trained; see `network_run`.
        gradient_rates, gradient_tolerance, gradient_steps: see `gradients_of`.
    """
    store = work.store
    how = {"tolerances": list(tolerances), "most_steps": most_steps, "repeats": repeats}
    belongs: dict[str, tuple[str, float]] = {
        _name(family, parameter): (family, parameter)
        for family, parameters in problems.items()
        for parameter in parameters
    }
    points = {
        name: {"family": family, "parameter": parameter, **how} for name, (family, parameter) in belongs.items()
    }
    costs = store.obtain(costs_run, points, label="stiff problems", alone=True)

    (trained,) = store.obtain(network_run, {"network": network}, label="network").values()
    suffixes = {iteration: snapshot(iteration) for iteration in network["iterations"]}
    files = {trained.identity(suffix): trained.file(suffix) for suffix in suffixes.values()}
    solves = {
        _name(NETWORK, iteration): {"weights": trained.identity(suffix), "hidden": network["hidden"], **how}
        for iteration, suffix in suffixes.items()
    }
    costs |= store.obtain(network_costs_run, solves, label="trained network", alone=True, files=files)
    belongs |= {_name(NETWORK, iteration): (NETWORK, iteration) for iteration in suffixes}

    rates = {"rates": list(gradient_rates), "tolerance": gradient_tolerance, "most_steps": gradient_steps}
    ways = {f"gradients/{m}-{g}": {"method": m, "gradient": g, **rates} for m, g in choices()}
    gradients = store.obtain(gradient_run, ways, label="gradients")

    model = StiffNetwork(network["hidden"])
    load_weights(model, trained.file(suffixes[max(suffixes)]))
    return Results(
        costs=pd.concat([_of(costs[name], *of) for name, of in belongs.items()], ignore_index=True),
        training=trained.table(),
        gradients=pd.concat([run.table() for run in gradients.values()], ignore_index=True),
        network=model.requires_grad_(False),
    )


def _of(run: Run, family: str, parameter: float) -> pd.DataFrame:
    return run.table().assign(family=family, parameter=parameter)


def _name(family: str, parameter: float) -> str:
    return f"{family.lower().replace(' ', '-')}-{parameter:g}"
