"""One function over a grid of settings: here, in some processes of this machine, or on a cluster.

    results = sweep(train, grid(model=["ResNet", "ODE-Net"], seed=range(3)), Path("scratch/sweep"))

Every result is a file as soon as it is there, so a sweep that was killed goes on with what is missing. Where a
point is computed makes no difference: always by one thread of PyTorch, whose random numbers the point alone
decides.
"""

import hashlib
import inspect
import itertools
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch

from neural_ode.errors import FileError, InvalidArgumentError, NeuralODEError, NeuralODEWarning, needs
from reproduction.files import write_atomically
from reproduction.progress import tqdm
from reproduction.training.checkpoint import fingerprint, pack, unpack

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["SCHEDULER_VARIABLE", "Point", "SweepError", "function_file", "grid", "sweep"]

R = TypeVar("R")

Point = Mapping[str, Any]
"""The settings of one task, by name; values that JSON has."""

SCHEDULER_VARIABLE = "DASK_SCHEDULER_ADDRESS"

# The number of threads and the random numbers belong to the process: one point at a time, also in a Dask worker
# that was started with several threads. A point that is a sweep itself computes its points where it is.
_ALONE = threading.RLock()
_INSIDE = threading.local()


class SweepError(NeuralODEError):
    """Points of a sweep failed, after all others were computed and stored.

    Attributes:
        failures: each failed point with its exception.
        results: in the order of the points, `None` where there is none.
    """

    def __init__(self, message: str, failures: Sequence[tuple[Point, Exception]] = (), results: Sequence[Any] = ()):
        super().__init__(message)
        self.failures = list(failures)
        self.results = list(results)


def grid(**axes: Iterable[Any]) -> list[Point]:
    """All combinations of the axes' values; the last axis changes fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep(
    function: Callable[..., R],
    points: Sequence[Point],
    folder: Path,
    *,
    workers: int | None = None,
    label: str = "sweep",
    received: Callable[[Point, R], None] | None = None,
) -> list[R]:
    """Call `function(**point)` for every point, unless its result is stored already.

    Args:
        function: of a module, so that other processes can import it. It returns what a file can hold that runs no
            code when it is read (see `reproduction.training.checkpoint.pack`): tensors, numbers, text, bytes, and
            dicts, lists and tuples of them. What `functools.partial` binds beforehand does
            not identify a result: for folders and the like. It must leave alone what other points may read.
        points: see `grid`.
        folder: for the results, `<fingerprint>.pt`; the fingerprint is that of the point, of what `function`
            and the modules of the library that it imports do, and of the version of PyTorch. Workers on other
            machines store there too if they can; what they cannot is stored when it arrives here.
        workers: processes of a Dask cluster on this machine; 0 for none. By default the scheduler whose address
            is in `DASK_SCHEDULER_ADDRESS`, and none without one.
        label: name in the progress bar.
        received: called here with every point and its result, in the order they come in.

    Returns:
        The results in the order of the points, bit for bit the same however they were computed on one kind of
        machine.

    Raises:
        SweepError: some points failed; it names the first and has the results of the others, which are stored.
        InvalidArgumentError: the function or a point cannot be identified.
        NeuralODEError: no scheduler answers.
        MissingPackageError: Dask is not installed.
    """
    folder = folder.resolve()
    keys = [_key(function, point) for point in points]
    waiting = dict(zip(keys, points, strict=True))
    results: dict[str, R] = {}
    failures: list[tuple[Point, Exception]] = []
    total = len(waiting)
    started = time.monotonic()
    with tqdm(total=total, desc=label, unit="point", dynamic_ncols=True) as bar:
        for outcome in _outcomes(function, waiting, folder, workers):
            point = waiting[outcome.key]
            if outcome.error is not None:
                failures.append((point, outcome.error))
            else:
                results[outcome.key] = outcome.value
                if received is not None:
                    received(point, outcome.value)
            bar.update()
        if bar.disable and not getattr(_INSIDE, "a_point", False):  # in a log, a line instead of the bar
            print(f"{label}: {len(results)} of {total} in {time.monotonic() - started:.0f} s", flush=True)
    if failures:
        point, error = failures[0]
        raise SweepError(
            f"{label}: {len(failures)} of {total} points failed, at first {_show(point)}: "
            f"{type(error).__name__}: {error}\n"
            f"The other results are in {folder}: the same sweep goes on from there",
            failures,
            [results.get(key) for key in keys],
        ) from error
    return [results[key] for key in keys]


class _Outcome(NamedTuple, Generic[R]):
    """What became of the point with fingerprint `key`; there is a value if there is no error."""

    key: str
    value: R
    error: Exception | None = None


def _outcomes(
    function: Callable[..., R], points: Mapping[str, Point], folder: Path, workers: int | None
) -> Iterator[_Outcome[Any]]:
    """The stored results, then the others as they come in."""
    missing = dict(points)
    for key in points:
        if (stored := _stored(key, folder)) is not None:
            del missing[key]
            yield stored
    if not missing:
        return
    with _client(workers) as client:
        if client is None:
            for key, point in missing.items():
                yield _kept(_attempt(key, partial(_compute, function, point, key, folder)), folder)
            return
        from distributed import as_completed

        # The fingerprint names the task: two sweeps at the same time share what they have in common. What stands
        # before it is a kind to Dask, which moves a task from a busy worker to an idle one only if it has seen how
        # long others of the kind take.
        futures = {
            client.submit(_compute, function, missing[key], key, folder, key=f"point-{key}"): key for key in missing
        }
        for future in as_completed(futures):
            outcome = _kept(_attempt(futures[future], future.result), folder)
            future.release()  # or the cluster keeps all results to the end
            yield outcome


def _kept(outcome: _Outcome[Any], folder: Path) -> _Outcome[Any]:
    """The outcome, in the folder if it is a result.

    Raises:
        OSError: it cannot be stored.
    """
    if outcome.error is None and not _file(outcome.key, folder).exists():
        _store(outcome, folder)
    return outcome


def _attempt(key: str, call: Callable[[], R]) -> _Outcome[Any]:
    try:
        return _Outcome(key, call())
    except Exception as error:  # whatever a task can raise: the others go on
        return _Outcome(key, None, error)


def _compute(function: Callable[..., R], point: Point, key: str, folder: Path) -> R:
    """One point, in whichever process."""
    if _key(function, point) != key:
        raise NeuralODEError(
            "this worker has other code, or another version of PyTorch, than the process that started the sweep: "
            "update it and start it again"
        )
    with _ALONE:
        # A worker can die after it has stored a result and before it has handed it over.
        if (stored := _stored(key, folder)) is not None:
            value: R = stored.value
            return value
        threads, outer = torch.get_num_threads(), getattr(_INSIDE, "a_point", False)
        try:
            _INSIDE.a_point = True
            torch.set_num_threads(1)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(hashlib.sha256(_text(point).encode()).hexdigest()[:15], 16))
                value = function(**point)
        finally:
            torch.set_num_threads(threads)
            _INSIDE.a_point = outer
    with suppress(OSError):  # what cannot be stored here is stored where the sweep was started
        _store(_Outcome(key, value), folder)
    return value


def _key(function: Callable[..., Any], point: Point) -> str:
    code = function_file(function)
    return fingerprint({"function": _unwrapped(function).__qualname__, "point": _text(point)}, code)


def function_file(function: Callable[..., Any]) -> Path:
    """The module that identifies what a function does.

    Raises:
        InvalidArgumentError: it is a method, a lambda, or of no file.
    """
    function = _unwrapped(function)
    name = getattr(function, "__qualname__", repr(function))
    # A method would depend on an object that does not identify the result.
    if not inspect.isfunction(function) or "." in name or "<" in name:
        raise InvalidArgumentError(f"a sweep needs a function that stands in a module by itself, got {name}")
    code = Path(inspect.getfile(function))
    if not code.is_file():
        raise InvalidArgumentError(f"a sweep needs a function from a file, {name} is from {code}")
    return code


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, partial):
        function = function.func
    plain: Callable[..., Any] = inspect.unwrap(function)  # the code that counts is not that of a decorator
    return plain


def _text(point: Point) -> str:
    try:
        return json.dumps(dict(point), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"the settings of a point must be numbers, text, or lists and dicts of them, got {_show(point)}: "
            f"{error}"
        ) from error


def _show(point: Point) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in point.items())


def _file(key: str, folder: Path) -> Path:
    return folder / f"{key}.pt"


def _store(outcome: _Outcome[Any], folder: Path) -> None:
    write_atomically(_file(outcome.key, folder), pack(outcome.value))


def _stored(key: str, folder: Path) -> _Outcome[Any] | None:
    """The result in the folder; `None` if there is none, or a damaged one, which a warning reports."""
    file = _file(key, folder)
    if not file.exists():
        return None
    try:
        return _Outcome(key, unpack(file, "computed again"))
    except FileError as error:
        warnings.warn(str(error), NeuralODEWarning, stacklevel=2)
        file.unlink(missing_ok=True)
        return None


@contextmanager
def _client(workers: int | None) -> Iterator["Client | None"]:
    """A connection to where the points are computed; `None` for this process."""
    address = os.environ.get(SCHEDULER_VARIABLE)
    if getattr(_INSIDE, "a_point", False) or workers == 0 or (workers is None and not address):
        yield None
        return
    with needs("cluster"):
        from distributed import Client, LocalCluster
    if workers is not None:
        local = LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=None, dashboard_address=None)
        with local, Client(local) as client:
            yield client
        return
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise NeuralODEError(f"no Dask scheduler at {SCHEDULER_VARIABLE}={address}: {error}") from error
    with client:
        yield client
