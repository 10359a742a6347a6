"""The search for how to train: what the paper leaves unstated is found by trial, the same way for all models."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from neural_ode.errors import NonFiniteError, SolverError
from reproduction.results import Files, Store, json_bytes
from reproduction.sweep import Point, SweepError

__all__ = ["first_stable", "ranked", "ranked_by_runs"]

C = TypeVar("C")
T = TypeVar("T")


def ranked(
    candidates: Mapping[str, Sequence[C]], trial: Callable[[str, C], Mapping[str, float]]
) -> tuple[dict[str, list[C]], list[dict[str, Any]]]:
    """The candidates of each model, those whose trials have the lowest mean loss first.

    Args:
        candidates: such as learning rates, for each model; a model with one candidate needs no trial.
        trial: the losses that a model reaches with a candidate, by name. One that diverges, so that a loss is not
            finite or a solve fails, counts as infinite loss.

    Returns:
        The candidates by model, and a row for each trial: `model`, `candidate`, the losses and their `mean`.
    """
    order, rows = {}, []
    for model, choices in candidates.items():
        means = [0.0] * len(choices)
        for k, candidate in enumerate(choices if len(choices) > 1 else ()):
            losses: Mapping[str, float] = {}
            try:
                losses = trial(model, candidate)
                mean = sum(losses.values()) / len(losses)
            except SolverError:
                mean = math.inf
            means[k] = mean if math.isfinite(mean) else math.inf
            rows.append({"model": model, "candidate": candidate, **losses, "mean": means[k]})
        order[model] = [choices[k] for k in sorted(range(len(choices)), key=means.__getitem__)]
    return order, rows


def ranked_by_runs(
    store: Store,
    function: Callable[..., Files],
    candidates: Mapping[str, Mapping[str, C]],
    point: Callable[[str, C], Point],
    **bound: Any,
) -> tuple[dict[str, dict[str, C]], list[dict[str, Any]]]:
    """As `ranked`, with each trial as a run, `search/<kind>-<name of the candidate>`.

    Args:
        store: of the notebook.
        function: makes the run of a trial: a table with the columns `name` and `loss`, which is infinite for a
            training that diverged.
        candidates: by name, for each kind of model.
        point: the settings of the trial of a kind with a candidate.
        **bound: see `Store.obtain`.

    Returns:
        The candidates by kind and name, the best ones first, and the rows of `ranked`.
    """
    names = {kind: list(choices) for kind, choices in candidates.items()}
    trials = {
        f"search/{kind.replace(' ', '-')}-{name}": point(kind, candidate)
        for kind, choices in candidates.items()
        for name, candidate in choices.items()
        if len(choices) > 1
    }
    runs = store.obtain(function, trials, label="search", **bound)

    def losses(kind: str, name: str) -> dict[str, float]:
        table = runs[f"search/{kind.replace(' ', '-')}-{name}"].table()
        return dict(zip(table["name"], table["loss"], strict=True))

    order, rows = ranked(names, losses)
    return {kind: {name: candidates[kind][name] for name in best} for kind, best in order.items()}, [
        {**row, "candidate": candidates[row["model"]][row["candidate"]]} for row in rows
    ]


def first_stable(
    store: Store,
    function: Callable[..., Any],
    kind: str,
    candidates: Mapping[str, C],
    recipe: Mapping[str, Any],
    train: Callable[[C], T],
) -> tuple[C, T]:
    """The first candidate whose training does not diverge, and what that training gives.

    A candidate whose training diverges is noted among the results, `diverged/<kind>-<name>`, and not tried again.

    Args:
        store: of the notebook.
        function: what makes the runs that `train` obtains.
        kind: of model, for the name of the note.
        candidates: by name, the best one first.
        recipe: what else decides whether a training diverges; a further seed does not count.
        train: obtains the runs of a candidate.

    Raises:
        NonFiniteError: it diverges with all of them.
    """
    for name, candidate in candidates.items():
        note, point = f"diverged/{kind.replace(' ', '-')}-{name}", {"candidate": candidate, **recipe}
        if store.has(function, note, point):
            continue
        try:
            found = train(candidate)
        except SweepError as error:
            reasons = [failure for _, failure in error.failures]
            if not all(isinstance(reason, SolverError) for reason in reasons):
                raise
            store.keep(function, note, point, {".json": json_bytes({"diverged": str(reasons[0])})})
            continue
        store.used.discard(note)
        return candidate, found
    raise NonFiniteError(f"training diverges with each of {list(candidates)}: try lower learning rates")
