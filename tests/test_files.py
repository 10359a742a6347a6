"""Files, the workspace of a notebook, and the figures it saves."""

import base64
import io
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from neural_ode.claims import Verdict
from neural_ode.errors import InvalidArgumentError, NeuralODEError
from neural_ode.experiments.memory import CHOICES
from neural_ode.experiments.tolerance import SOLVERS
from neural_ode.figures.animation import save_animation
from neural_ode.figures.scoreboard import draw_scoreboard
from neural_ode.figures.theme import COLORS, MARKERS, save_figure, use_theme
from neural_ode.files import replacing, write_atomically
from neural_ode.models.mnist import MNIST_MODELS
from neural_ode.workspace import OUTPUT_VARIABLE, MissingResultError, Workspace, choose_device, project_root


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomically(target, "old")

    def fail() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    write_atomically(tmp_path / "new" / "b.bin", b"\0")
    assert (tmp_path / "new" / "b.bin").read_bytes() == b"\0"
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_project_root(root: Path, tmp_path: Path) -> None:
    assert project_root(root / "notebooks") == root
    with pytest.raises(NeuralODEError, match="not inside a clone"):
        project_root(tmp_path)


def test_by_hand_a_notebook_writes_to_scratch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OUTPUT_VARIABLE, raising=False)
    monkeypatch.chdir(root / "notebooks")
    work = Workspace.open("04_mnist", "quick")
    for path in (work.figure("table1"), work.runs, work.checkpoints):
        assert path.is_relative_to(root / "scratch")


def test_results_are_found_here_first_and_in_the_project_after(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTPUT_VARIABLE, str(tmp_path / "out"))
    monkeypatch.chdir(root)
    opened = Workspace.open("04_mnist", "quick")
    work = Workspace("04_mnist", "quick", tmp_path, opened.output)
    assert work.figure("table1") == tmp_path / "out" / "figures" / "quick" / "04_mnist_table1"
    with pytest.raises(MissingResultError, match=r"`dvc repro mnist@quick`.*notebooks/04_mnist\.ipynb"):
        work.read_claims("04_mnist")
    earlier = tmp_path / "figures" / "quick" / "04_mnist.claims.json"
    write_atomically(earlier, json.dumps({"a": 1}))
    assert work.read_claims("04_mnist") == {"a": 1}
    work.write_claims({"a": 2})
    assert work.read_claims("04_mnist") == {"a": 2}
    assert json.loads(earlier.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="JSON"):
        work.write_metrics({"a": float("nan")})


def test_devices() -> None:
    assert choose_device("auto").type in ("cpu", "cuda")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InvalidArgumentError, match="try 'auto'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidArgumentError, match="'cuda' cannot be used here"):
            choose_device("cuda")


def test_figures_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    use_theme()

    def draw(name: str) -> list[bytes]:
        figure, axes = plt.subplots()
        axes.plot([1, 2, 3], [3, 1, 2], "o-", label="line")
        axes.legend()
        paths = save_figure(figure, tmp_path / name)
        plt.close(figure)
        assert [path.name for path in paths] == [f"{name}.svg", f"{name}.png"]
        return [path.read_bytes() for path in paths]

    assert draw("a") == draw("b")


def test_every_network_has_a_look_of_its_own() -> None:
    assert set(COLORS) == set(MARKERS) == set(MNIST_MODELS) | set(CHOICES) | set(SOLVERS)
    for together in ({*MNIST_MODELS, *CHOICES}, SOLVERS):
        for looks in (COLORS, MARKERS):
            assert len({looks[name] for name in together}) == len(together)


def test_scoreboard_shows_every_claim() -> None:
    table = pd.DataFrame(
        {
            "claim": ["One.", "Two. " * 40, "Three.", "Four."],
            "item": "Table 1",
            "verdict": [str(v) for v in Verdict],
        }
    )
    figure = draw_scoreboard(table, "Claims")
    texts = [text.get_text() for text in figure.axes[0].texts]
    for sign in "✓✗?·":
        assert texts.count(sign) == 1
    assert any(text.count("\n") >= 1 for text in texts)
    plt.close(figure)


def test_animations_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    frames = [torch.eye(4), torch.ones(4, 4), torch.eye(4).flip(0)]
    first, second = (save_animation(frames, tmp_path / name) for name in ("a", "b"))
    assert first == tmp_path / "a.gif"
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert picture.size == (8, 8)
        assert picture.n_frames == 4  # forth and back
        # The first row of a density is drawn below.
        assert picture.convert("RGB").getpixel((0, 7)) != picture.convert("RGB").getpixel((0, 0))
    with pytest.raises(InvalidArgumentError, match="at least one density"):
        save_animation([], tmp_path / "c")


def test_large_files_are_made_smaller(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    figure, axes = plt.subplots(figsize=(6, 6))
    axes.imshow(generator.random((300, 300, 3)))
    plt.close(figure)
    save_figure(figure, tmp_path / "noise")
    with Image.open(tmp_path / "noise.png") as picture:
        assert picture.mode == "P"
        assert picture.size == (720, 720)
    inside = re.search(r'<image.*?base64,\s*([^"]+)"', (tmp_path / "noise.svg").read_text(), re.DOTALL)
    assert inside is not None
    with Image.open(io.BytesIO(base64.b64decode(inside[1]))) as picture:
        assert 250 < picture.size[0] < 360  # 6 inches less the margins, at 60 instead of 120 dots an inch
    small, _ = plt.subplots()
    plt.close(small)
    save_figure(small, tmp_path / "small")
    with Image.open(tmp_path / "small.png") as picture:
        assert picture.mode == "RGBA"
