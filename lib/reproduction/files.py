"""Files: read in one place, which says what is wrong with one, and written so that they are complete or absent."""

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError, needs

__all__ = [
    "publish_files",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
    "replace_between",
    "replacing",
    "write_atomically",
]


def read_bytes(file: Path, remedy: str) -> bytes:
    """The content of a file.

    Args:
        file: which.
        remedy: what to do if it is missing or damaged; ends the message of the error.

    Raises:
        FileError: there is no such file, or the system does not let it be read.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise FileError(f"{file} does not exist: {remedy}") from error
    except OSError as error:
        raise FileError(f"{file} cannot be read ({error.strerror}): {remedy}") from error


def read_text(file: Path, remedy: str) -> str:
    """A text file in UTF-8. Arguments as for `read_bytes`.

    Raises:
        FileError: it is missing, or its bytes are no text.
    """
    try:
        return read_bytes(file, remedy).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{file} is damaged (not text in UTF-8 at byte {error.start}): {remedy}") from error


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """A JSON file that holds an object. Arguments as for `read_bytes`.

    Raises:
        FileError: it is missing, damaged, or holds something else.
    """
    try:
        content = json.loads(read_text(file, remedy))
    except ValueError as error:  # JSONDecodeError is one; so is a number with too many digits
        raise FileError(f"{file} is damaged (no JSON: {error}): {remedy}") from error
    return _mapping(content, file, remedy)


def read_yaml(file: Path, remedy: str) -> dict[str, Any]:
    """A YAML file that holds a mapping; an empty file is an empty one. Arguments as for `read_bytes`.

    Raises:
        FileError: it is missing, is no YAML, or holds something else.
    """
    with needs("notebooks"):
        import yaml

    try:
        content = yaml.safe_load(read_text(file, remedy))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        reason = " ".join(str(error).split())  # in one line
        raise FileError(f"{file} is not valid YAML ({reason}): {remedy}") from error
    return _mapping({} if content is None else content, file, remedy)


def _mapping(content: Any, file: Path, remedy: str) -> dict[str, Any]:
    """The content, which must be a mapping whose keys are text."""
    if not isinstance(content, dict):
        raise FileError(f"{file} must hold names with values, got {type(content).__name__}: {remedy}")
    for key in content:
        if not isinstance(key, str):
            raise FileError(f"{file}: a name must be text, got {key!r}: {remedy}")
    return content


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path in the folder of `target`, which becomes `target` if the block succeeds.

    The folder is made if needed. The temporary name keeps the suffix of `target`. What was left of the same target
    by processes of this machine that were killed is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}.{_machine()}-{os.getpid()}-", suffix=target.suffix
    )
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


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files of a target whose makers are gone; those of other machines stay."""
    made_here = re.compile(re.escape(f".{target.stem}.{_machine()}-") + r"(\d+)-\w+" + re.escape(target.suffix))
    for path in list(target.parent.iterdir()):
        maker = made_here.fullmatch(path.name)
        if maker and not _runs(int(maker[1])):
            path.unlink(missing_ok=True)


def _machine() -> str:
    """A short name of this machine: processes are known by their number on one machine only."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    """Whether there is a process of that number; where that cannot be asked, it counts as there."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def write_atomically(target: Path, content: str | bytes) -> None:
    """Write a whole file under a temporary name and rename it."""
    with replacing(target) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def publish_files(made: Mapping[Path, Path], outdated: Sequence[Path]) -> None:
    """Copy files to their places and remove others: all of it, or nothing.

    Every copy is complete beside its target, and so is a copy of what it will replace, before the first renaming.
    If a step fails, what was there before is put back. Only a process that is killed among the renamings, which
    take milliseconds, leaves some of each: whoever publishes must then publish again. For one process at a time:
    the copies have the same names every time, `.<name>.new` and `.<name>.old`, so that none of a killed one stays.

    Args:
        made: source by target. The sources stay.
        outdated: files to remove.

    Raises:
        FileError: a step failed; everything is as it was.
    """
    kept = [target for target in (*made, *outdated) if target.exists()]
    done: list[Path] = []
    lost: list[Path] = []
    try:
        for target, source in made.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_whole(source, _beside(target, "new"))
        for target in kept:
            _copy_whole(target, _beside(target, "old"))
        for target in made:
            _beside(target, "new").replace(target)
            done.append(target)
        for target in outdated:
            target.unlink()
            done.append(target)
    except BaseException as error:  # also when a user interrupts it
        lost = [target for target in done if not _put_back(target, target in kept)]
        if not isinstance(error, OSError):
            raise
        where = error.filename2 or error.filename or "a file"
        problem = f"nothing was published ({where}: {error.strerror or error})"
        if lost:
            problem += f"; not put back, but still there: {', '.join(str(_beside(x, 'old')) for x in lost)}"
        raise FileError(f"{problem}: mend that and run again") from error
    finally:
        for target in {*made, *kept}.difference(lost):
            for kind in ("new", "old"):
                with suppress(OSError):
                    _beside(target, kind).unlink(missing_ok=True)


def _put_back(target: Path, existed: bool) -> bool:
    """Undo one step; False if that fails too."""
    try:
        if existed:
            _beside(target, "old").replace(target)
        else:
            target.unlink()
    except OSError:
        return False
    return True


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _copy_whole(source: Path, target: Path) -> None:
    """Copy the content, and wait until it is on the disk."""
    with source.open("rb") as given, target.open("wb") as copy:
        shutil.copyfileobj(given, copy)
        copy.flush()
        os.fsync(copy.fileno())


def replace_between(target: Path, begin: str, end: str, content: str) -> None:
    """Replace what stands in a text file between the first `begin` and the next `end`.

    Raises:
        FileError: the file cannot be read, or lacks one of them.
    """
    remedy = f"it must have {begin!r} and, after it, {end!r}"
    before, found, rest = read_text(target, remedy).partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise FileError(f"{target} has no place for the text: {remedy}")
    write_atomically(target, before + begin + content + end + after)
