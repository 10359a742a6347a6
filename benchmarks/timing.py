"""Contenders, timed in turn.

A machine's speed drifts: with its clock, its temperature and its neighbours. So contenders are not timed one after
another but in rounds, each of which runs every contender once, and are compared within rounds.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Contender", "Interval", "Measured", "Unavailable", "arrays", "in_turn", "measure", "ratio"]

Run = Callable[[], tuple[Any, int | None]]
"""What is timed. Returns the result and the evaluations of the dynamics, `None` where they are not known."""

_RESAMPLES = 2000


class Unavailable(Exception):  # noqa: N818 (no error: the row is left out)
    """A contender cannot take part; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One library in one setting.

    Attributes:
        name: how it is called in tables.
        prepare: builds what is timed; not timed itself.
        count: the evaluations of the dynamics, for libraries that do not say.
        compiles: whether the first call takes many seconds.
    """

    name: str
    prepare: Callable[[], Run]
    count: Callable[[], int] | None = None
    compiles: bool = False


@dataclass
class Measured:
    """What was found out about a contender.

    Attributes:
        values: its result.
        nfe: evaluations of the dynamics, backward pass included.
        first_call: seconds that preparation and the first call took together, compilation included.
        seconds: of each round.
    """

    values: list[NDArray[np.float64]]
    nfe: int | None
    first_call: float
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    estimate: float
    low: float
    high: float


def _wall_clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class _FirstCall:
    """Preparation and first call of a contender, as one call."""

    run: Run
    outcome: tuple[Any, int | None]

    def __init__(self, contender: Contender):
        self.contender = contender

    def __call__(self) -> None:
        self.run = self.contender.prepare()
        self.outcome = self.run()


def measure(
    contenders: Sequence[Contender],
    budget: float,
    rounds: tuple[int, int],
    clock: Callable[[Callable[[], object]], float] = _wall_clock,
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Time contenders against each other.

    Args:
        contenders: in the order of the table.
        budget: seconds that all rounds together may take.
        rounds: fewest and most rounds, whatever the budget says.
        clock: the seconds that a call takes.

    Returns:
        What was measured and, for contenders that could not take part, why.
    """
    found: dict[str, Measured] = {}
    runs: dict[str, Run] = {}
    skipped: dict[str, str] = {}
    once = 0.0
    for contender in contenders:
        first = _FirstCall(contender)
        try:
            first_call = clock(first)
            run, (values, nfe) = first.run, first.outcome
            nfe = nfe if contender.count is None else contender.count()
            second_call = clock(run)  # compilers may work on a second call too
        except Exception as error:  # one that fails must not end the run of the others
            reason = f"{error}" if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
            skipped[contender.name] = reason.splitlines()[0][:200]
            continue
        once += second_call
        found[contender.name] = Measured(arrays(values), None if nfe is None else int(nfe), first_call)
        runs[contender.name] = run
    if runs:
        fewest, most = rounds
        number = min(most, max(fewest, int(budget / max(once, 1e-9))))
        for name, seconds in in_turn(runs, number, clock).items():
            found[name].seconds = seconds
    return found, skipped


def in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[Callable[[], object]], float] = _wall_clock,
) -> dict[str, NDArray[np.float64]]:
    """The seconds of every run in every round, without the garbage collector."""
    seconds = {name: np.empty(rounds) for name in runs}
    collects = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()  # what the libraries have loaded need not be looked through every time
    try:
        for k in range(rounds):
            gc.collect()
            # There and back, so that nobody always comes after the same neighbour.
            for name in list(runs)[:: 1 if k % 2 == 0 else -1]:
                seconds[name][k] = clock(runs[name])
    finally:
        gc.unfreeze()
        if collects:
            gc.enable()
    return seconds


def ratio(a: NDArray[np.float64], b: NDArray[np.float64], difference: bool = False) -> Interval:
    """Median of `a` over median of `b`, or minus it.

    The interval is the percentile bootstrap over rounds (Efron & Tibshirani 1993, *An Introduction to the
    Bootstrap*, chapter 13); a round is drawn with both its times.
    """
    drawn = np.random.default_rng(0).integers(len(a), size=(_RESAMPLES, len(a)))

    def compare(x: Any, y: Any) -> Any:
        return x - y if difference else x / y

    many = compare(np.median(a[drawn], axis=1), np.median(b[drawn], axis=1))
    low, high = np.quantile(many, [0.025, 0.975])
    return Interval(float(compare(np.median(a), np.median(b))), float(low), float(high))


def arrays(values: Any) -> list[NDArray[np.float64]]:
    """Tensors and arrays in tuples and lists, flattened into a list of arrays."""
    if isinstance(values, tuple | list):
        return [array for part in values for array in arrays(part)]
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return [np.asarray(values, dtype=np.float64)]
