"""MNIST as the repository holds it, and what happens when a file is damaged or missing."""

import gzip
import shutil
from pathlib import Path

import pytest
import torch
import torchvision.datasets.mnist

from neural_ode.errors import InvalidArgumentError
from reproduction.data.mnist import SHA256, DataError, Mnist, ShuffledBatches, Split, load_mnist


@pytest.fixture(scope="session")
def mnist(root: Path) -> Mnist:
    return load_mnist(root / "data" / "mnist")


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may damage."""
    for file in (root / "data" / "mnist").glob("*.gz"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the network: notes what is asked for and fails like a machine without one."""
    asked: list[str] = []

    def download(url: str, *args: object, **kwargs: object) -> None:
        asked.append(url.rsplit("/", 1)[-1])
        raise RuntimeError("no route to host")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", download)
    return asked


def test_splits(mnist: Mnist) -> None:
    assert [len(split.labels) for split in mnist] == [55_000, 5_000, 10_000]
    for split in mnist:
        assert split.images.shape == (len(split.labels), 1, 28, 28)
        assert split.images.dtype == torch.uint8
        assert sorted(split.labels.unique().tolist()) == list(range(10))


def test_first_labels_are_the_well_known_ones(mnist: Mnist) -> None:
    assert mnist.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_no_image_is_in_two_splits(mnist: Mnist) -> None:
    seen = [{image.numpy().tobytes() for image in split.images} for split in mnist]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_take_is_spread_and_repeatable(mnist: Mnist) -> None:
    part = mnist.train.take(1000)
    assert torch.equal(part.images, mnist.train.take(1000).images)
    assert torch.equal(part.labels, mnist.train.labels[::55])
    assert mnist.train.take(None) is mnist.train
    for n in (0, 55_001):
        with pytest.raises(InvalidArgumentError, match=str(n)):
            mnist.train.take(n)


@pytest.mark.parametrize("name", SHA256)
@pytest.mark.parametrize("damage", ["truncated", "one byte", "other content", "no gzip"])
def test_a_damaged_file_is_named_with_the_remedy(folder: Path, name: str, damage: str) -> None:
    packed = folder / f"{name}.gz"
    content = packed.read_bytes()
    match damage:
        case "truncated":
            content = content[: len(content) // 2]
        case "one byte":
            content = content[:2000] + bytes([content[2000] ^ 1]) + content[2001:]
        case "other content":
            content = gzip.compress(gzip.decompress(content)[:-1] + b"x", compresslevel=1)
        case "no gzip":
            content = b"<html>not found</html>"
    packed.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}\.gz is damaged.*git checkout"):
        load_mnist(folder)


def test_a_damaged_unpacked_file_is_made_again(folder: Path, mnist: Mnist) -> None:
    load_mnist(folder)
    unpacked = folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    unpacked.write_bytes(unpacked.read_bytes()[:-1] + b"\0")
    assert torch.equal(load_mnist(folder).test.labels, mnist.test.labels)


def test_missing_files_are_downloaded_by_torchvision(
    folder: Path, mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has the files: torchvision's own download, with the transfer replaced."""
    server = folder / "server"
    server.mkdir()
    for name in SHA256:
        (folder / f"{name}.gz").rename(server / f"{name}.gz")

    def download(url: str, download_root: str, filename: str, md5: str) -> None:
        content = gzip.decompress((server / url.rsplit("/", 1)[-1]).read_bytes())
        (Path(download_root) / filename.removesuffix(".gz")).write_bytes(content)

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", download)
    loaded = load_mnist(folder)
    for ours, theirs in zip(loaded, mnist, strict=True):
        assert torch.equal(ours.images, theirs.images)


def test_missing_files_without_a_network(folder: Path, no_download: list[str]) -> None:
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte of MNIST neither in .* nor to be downloaded"):
        load_mnist(folder)
    assert no_download


def test_batches_are_a_function_of_the_step(mnist: Mnist) -> None:
    batches = ShuffledBatches(mnist.train.take(100), size=30, seed=7, max_shift=2)
    assert batches.steps_per_epoch == 3
    images, labels = batches(5)
    assert images.shape == (30, 1, 28, 28)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    again = ShuffledBatches(mnist.train.take(100), size=30, seed=7, max_shift=2)
    again(0)
    torch.manual_seed(99)
    assert torch.equal(again(5)[0], images)
    assert not torch.equal(ShuffledBatches(mnist.train.take(100), 30, 8, 2)(5)[1], labels)


def test_an_epoch_goes_through_the_examples_once() -> None:
    split = Split(torch.zeros(90, 1, 28, 28, dtype=torch.uint8), torch.arange(90))
    batches = ShuffledBatches(split, size=30, seed=0)
    first = torch.cat([batches(step)[1] for step in range(3)])
    second = torch.cat([batches(step)[1] for step in range(3, 6)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(90))
    assert first.tolist() != second.tolist()


def test_shifts_move_whole_images_within_the_limit() -> None:
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[0, 0, 13, 14] = 255
    batches = ShuffledBatches(Split(image.expand(400, -1, -1, -1), torch.zeros(400)), 400, 0, max_shift=2)
    found = batches(0)[0].flatten(1)
    assert torch.equal(found.sum(1), torch.ones(400))
    places = {divmod(place, 28) for place in found.argmax(1).tolist()}
    assert places == {(13 + down, 14 + right) for down in range(-2, 3) for right in range(-2, 3)}


def test_batch_larger_than_the_data() -> None:
    with pytest.raises(InvalidArgumentError, match="batch size 5 with 2"):
        ShuffledBatches(Split(torch.zeros(2, 1, 28, 28), torch.zeros(2)), 5, 0)
