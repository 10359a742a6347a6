"""One run of a notebook at a time, and none that goes on when whoever started it is gone."""

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neural_ode.errors import FileError, NeuralODEError

__all__ = ["KERNEL_ARGUMENTS", "BusyError", "locked", "stop_with_parent"]

PR_SET_PDEATHSIG = 1
"""Of Linux: a signal for a process when its parent dies."""

KERNEL_ARGUMENTS = (
    [f"--IPKernelApp.exec_lines=__import__('ctypes').CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGKILL)})"]
    if sys.platform == "linux"
    else []
)
"""For a kernel that dies with the process that started it, at once. Elsewhere ipykernel looks every second."""


class BusyError(NeuralODEError):
    """Another process is at it."""


@contextmanager
def locked(file: Path, work: str) -> Iterator[None]:
    """Hold a lock for the time of a block. It ends with the process, however that dies.

    Args:
        file: of the lock; it is there while the lock is held, and says which process holds it.
        work: what must not be done twice at the same time, in words.

    Raises:
        BusyError: another process holds the lock; the message names it.
        FileError: the file cannot be made.
    """
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held = file.open("a+")
        except OSError as error:
            raise FileError(
                f"{file} cannot be made ({error.strerror}): {work} must be able to write there"
            ) from error
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with held:
                held.seek(0)
                holder = held.read().strip() or "unknown"
            raise BusyError(f"{work} is under way already: wait until process {holder} ends, or stop it") from error
        # Whoever held it before may have removed the file after it was opened here.
        if file.exists() and os.path.samestat(file.stat(), os.fstat(held.fileno())):
            break
        held.close()
    with held:
        held.truncate(0)
        held.write(f"{os.getpid()}")
        held.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def stop_with_parent() -> None:
    """From now on this process is terminated within a second after its parent has died.

    `kill` of a `dvc repro` reaches DVC alone: without this, what it started would go on and be in the way of the
    next one. Whoever starts a run with `nohup` wants it to outlive the shell: it does, unless DVC is the parent.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and "DVC_STAGE" not in os.environ:
        return
    # Not by PR_SET_PDEATHSIG: Linux would send it when the thread ends that started this process.
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
