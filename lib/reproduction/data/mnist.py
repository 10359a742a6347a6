"""MNIST: the four canonical files, verified, and split the same way for everybody.

Yann LeCun, Corinna Cortes and Christopher J. C. Burges; licence CC BY-SA 3.0 (`data/mnist/README.md`).
"""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from neural_ode.errors import FileError, InvalidArgumentError, needs
from reproduction.files import write_atomically

__all__ = ["DataError", "Mnist", "ShuffledBatches", "Split", "load_mnist", "load_splits"]

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of the decompressed files."""

VALIDATION = 5000


class DataError(FileError):
    """A data file is damaged or cannot be had."""


class Split(NamedTuple):
    """Images, uint8 of shape (n, 1, 28, 28), and labels, int64 of shape (n,)."""

    images: Tensor
    labels: Tensor

    def take(self, n: int | None) -> "Split":
        """`n` examples evenly spread over the split, the same ones every time; all of them for `None`.

        Raises:
            InvalidArgumentError: there are not that many.
        """
        if n is None:
            return self
        if not 0 < n <= len(self.labels):
            raise InvalidArgumentError(f"cannot take {n} of {len(self.labels)} examples")
        chosen = torch.arange(n) * len(self.labels) // n
        return Split(self.images[chosen], self.labels[chosen])


class Mnist(NamedTuple):
    """55,000 training, 5,000 validation and 10,000 test examples.

    The validation examples are the last 5,000 of the training files. All choices are made on them: the test
    examples are for the number that is reported, and nothing else.
    """

    train: Split
    validation: Split
    test: Split


def load_mnist(folder: str | Path) -> Mnist:
    """Read MNIST from `folder`.

    The gzip files in `folder` are unpacked to where torchvision looks for them (`folder/MNIST/raw`); where they
    are missing, torchvision downloads them. Each file is checked against its SHA-256 every time.

    Raises:
        DataError: a file is damaged, or missing and not to be downloaded; the message names it and the remedy.
    """
    with needs("notebooks"):
        from torchvision.datasets import MNIST

    folder = Path(folder)
    raw = folder / "MNIST" / "raw"
    missing = [name for name in SHA256 if not _unpacked(folder, raw, name)]
    if missing:
        try:
            MNIST(folder, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{', '.join(missing)} of MNIST neither in {folder} nor to be downloaded: put the files "
                f"{', '.join(name + '.gz' for name in missing)} there ({error})"
            ) from error
        for name in missing:
            if not _intact(raw / name):
                raise DataError(f"the downloaded {raw / name} is damaged: delete it and run again")
    train, test = MNIST(folder, train=True), MNIST(folder, train=False)
    images, labels = train.data[:, None], train.targets
    return Mnist(
        Split(images[:-VALIDATION], labels[:-VALIDATION]),
        Split(images[-VALIDATION:], labels[-VALIDATION:]),
        Split(test.data[:, None], test.targets),
    )


def load_splits(folder: str | Path, sizes: Sequence[int | None]) -> Mnist:
    """`load_mnist` with as many examples of each split as `sizes` says, all for `None`."""
    return Mnist(*(split.take(size) for split, size in zip(load_mnist(folder), sizes, strict=True)))


def _unpacked(folder: Path, raw: Path, name: str) -> bool:
    """Make sure that the file is unpacked and intact; False if it is nowhere."""
    if _intact(raw / name):
        return True
    packed = folder / f"{name}.gz"
    if not packed.exists():
        (raw / name).unlink(missing_ok=True)
        return False
    remedy = f"restore it with `git checkout -- {packed}`, or delete it and it is downloaded"
    try:
        content = gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{packed} is damaged ({error}): {remedy}") from error
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise DataError(f"{packed} is damaged (wrong SHA-256 of its content): {remedy}")
    write_atomically(raw / name, content)
    return True


def _intact(file: Path) -> bool:
    return file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == SHA256[file.name]


@dataclass(frozen=True)
class ShuffledBatches:
    """Training batches by the number of the step: a function without a state, so any step can be repeated.

    Each epoch goes once through the examples in a new order (a last, incomplete batch is left out); each image
    may be shifted by up to `max_shift` pixels in both directions.

    Attributes:
        split: the examples.
        size: examples in a batch.
        seed: decides order and shifts.
        max_shift: in pixels.
        device: where the batches go.

    Raises:
        InvalidArgumentError: a batch is empty, or larger than all examples together.
    """

    split: Split
    size: int
    seed: int
    max_shift: int = 0
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.size <= len(self.split.labels):
            raise InvalidArgumentError(f"batch size {self.size} with {len(self.split.labels)} examples")

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches there are."""
        return len(self.split.labels) // self.size

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images in [0, 1], float32 of shape (size, 1, 28, 28), and labels of shape (size,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = torch.randperm(len(self.split.labels), generator=_generator(self.seed, 0, epoch))
        chosen = order[position * self.size : (position + 1) * self.size]
        images = self.split.images[chosen].to(self.device, torch.float32) / 255
        if self.max_shift:
            images = _shift(images, self.max_shift, _generator(self.seed, 1, step))
        return images, self.split.labels[chosen].to(self.device)


def _generator(seed: int, stream: int, index: int) -> torch.Generator:
    """Independent random numbers for every (seed, stream, index)."""
    digest = hashlib.sha256(f"{seed} {stream} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _shift(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image by its own whole number of pixels, -most to most in both directions; zeros come in."""
    n, _, height, width = images.shape
    down, right = torch.randint(2 * most + 1, (2, n, 1), generator=generator).to(images.device)
    padded = F.pad(images, (most,) * 4)
    rows = down + torch.arange(height, device=images.device)
    columns = right + torch.arange(width, device=images.device)
    image = torch.arange(n, device=images.device)[:, None, None]
    return padded[image, 0, rows[:, :, None], columns[:, None, :]][:, None]
