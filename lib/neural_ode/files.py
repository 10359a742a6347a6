"""Files that are either complete or absent, whenever the process dies."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replace_between", "replacing", "write_atomically"]


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path in the folder of `target`, which becomes `target` if the block succeeds.

    The folder is made if needed. The temporary name keeps the suffix of `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp gives 0600
        with temporary.open("rb") as written:  # on the disk before it takes the name, whatever happens to the power
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(target: Path, content: str | bytes) -> None:
    """Write a whole file under a temporary name and rename it."""
    with replacing(target) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def replace_between(target: Path, begin: str, end: str, content: str) -> None:
    """Replace what stands in a text file between the first `begin` and the next `end`.

    Raises:
        ValueError: the file lacks one of them.
    """
    before, found, rest = target.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{target} has no place for the text: {begin!r} and, after it, {end!r} are needed")
    write_atomically(target, before + begin + content + end + after)
