"""Files, the workspace of a notebook, and the figures it saves."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from neural_ode.errors import FileError, InvalidArgumentError, NeuralODEError
from reproduction.experiments.memory import CHOICES
from reproduction.experiments.tolerance import SOLVERS
from reproduction.figures.animation import save_animation
from reproduction.figures.scoreboard import draw_scoreboard
from reproduction.figures.theme import COLORS, MARKERS, save_figure, use_theme
from reproduction.files import read_json, replace_between, replacing, write_atomically
from reproduction.models.mnist import MNIST_MODELS
from reproduction.pipeline.board import read_board
from reproduction.results import MissingResultError
from reproduction.rules import Verdict
from reproduction.workspace import DRAW_VARIABLE, OUTPUT_VARIABLE, Workspace, choose_device, project_root


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


UNFINISHED = """
import sys
from pathlib import Path
from reproduction.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    """And nothing else: not what a process that still writes has, nor what belongs to another file or machine."""
    (tmp_path / "a.json").write_text("old")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UNFINISHED, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a.json", "a.json", "a.b.json")
    ]
    names = [process.stdout.readline().strip() for process in processes]
    for killed in (processes[0], processes[2]):
        killed.kill()
        killed.wait()
    elsewhere = re.sub(r"(?<=^\.a\.)\w{8}", "0" * 8, names[0])
    (tmp_path / elsewhere).write_text("half")
    write_atomically(tmp_path / "a.json", "new")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.json", names[1], names[2], elsewhere}
    processes[1].communicate("")
    assert (tmp_path / "a.json").read_text() == "half"


def test_a_file_is_replaced_and_never_written_over(tmp_path: Path) -> None:
    """Who has the old one open, or is killed, has all of it."""
    target, another_name = tmp_path / "a.txt", tmp_path / "b.txt"
    write_atomically(target, "old")
    another_name.hardlink_to(target)
    with target.open() as opened:
        write_atomically(target, b"new and longer")
        assert opened.read() == another_name.read_text() == "old"
    assert target.read_text() == "new and longer"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff", r"is damaged \(not text in UTF-8 at byte 0\)"),
        (b"[1]", "must hold names with values, got list"),
        (b"null", "must hold names with values, got NoneType"),
        (b"1" * 5000, "is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_way_out(
    content: bytes | None, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(FileError, match=rf"a\.json {words}.*: make it again$"):
        read_json(file, "make it again")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot be read \(Is a directory\): make it again"):
        read_json(tmp_path, "make it again")


def test_a_text_without_the_marks_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("begin, and no more")
    with pytest.raises(FileError, match=r"a\.md has no place for the text: it must have 'begin' and, .* 'end'"):
        replace_between(tmp_path / "a.md", "begin", "end", "text")
    with pytest.raises(FileError, match=r"b\.md does not exist"):
        replace_between(tmp_path / "b.md", "begin", "end", "text")


def test_a_notebook_shows_one_line_for_a_missing_file(tmp_path: Path) -> None:
    """As IPython shows it: no traceback of what wanted the file."""
    code = "from pathlib import Path; from reproduction.files import read_text; read_text(Path('a.csv'), 'make it')"
    command = [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", code]
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert shown.stdout.strip() == "FileError: a.csv does not exist: make it"
    assert shown.returncode != 0


def test_project_root(root: Path, tmp_path: Path) -> None:
    assert project_root(root / "notebooks") == root
    with pytest.raises(NeuralODEError, match="not inside a clone"):
        project_root(tmp_path)


def test_by_hand_a_notebook_writes_to_scratch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (OUTPUT_VARIABLE, DRAW_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(root / "notebooks")
    work = Workspace.open("04_mnist", "quick")
    target, checkpoints = work.store.target, work.store.checkpoints
    assert target == root / "scratch" / "results" / "quick" / "04_mnist"
    assert work.store.folders == [root / "results" / "quick" / "04_mnist", target]
    for path in (work.figure("table1"), checkpoints):
        assert path.is_relative_to(root / "scratch")


def test_an_empty_variable_counts_as_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (OUTPUT_VARIABLE, DRAW_VARIABLE):
        monkeypatch.setenv(name, "")
    monkeypatch.chdir(root / "notebooks")
    work = Workspace.open("04_mnist", "quick")
    assert work.output == root / "scratch"
    assert work.store.target is not None


def test_a_relative_output_does_not_follow_a_change_of_folder(root: Path, tmp_path: Path) -> None:
    """In a process of its own: what counts is where it began."""
    script = (
        "import os; from reproduction.workspace import Workspace; found = []\n"
        f"for folder in ({str(root)!r}, {str(root / 'notebooks')!r}):\n"
        "    os.chdir(folder); found.append(str(Workspace.open('04_mnist', 'quick').output))\n"
        "print(*found, sep='|')"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {OUTPUT_VARIABLE: "out", "PYTHONPATH": str(root / "lib")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {Path(name) for name in shown.stdout.strip().split("|")} == {tmp_path / "out"}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_damaged_claims_of_a_notebook_are_named(content: bytes, tmp_path: Path) -> None:
    work = Workspace("11_scoreboard", "quick", tmp_path, tmp_path / "out")
    file = tmp_path / "figures" / "quick" / "04_mnist" / "claims.json"
    write_atomically(file, content)
    way_out = r"04_mnist/claims\.json .*: delete it and .*`dvc repro notebook@quick-04_mnist`"
    with pytest.raises(FileError, match=way_out):
        work.read_claims("04_mnist")


def test_results_are_found_here_first_and_in_the_project_after(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTPUT_VARIABLE, str(tmp_path / "out"))
    monkeypatch.chdir(root)
    opened = Workspace.open("04_mnist", "quick")
    work = Workspace("04_mnist", "quick", tmp_path, opened.output)
    assert work.figure("table1") == tmp_path / "out" / "figures" / "quick" / "04_mnist" / "table1"
    with pytest.raises(MissingResultError, match=r"`dvc repro notebook@quick-04_mnist`.*notebooks/04_mnist\.ipynb"):
        work.read_claims("04_mnist")
    earlier = tmp_path / "figures" / "quick" / "04_mnist" / "claims.json"
    write_atomically(earlier, json.dumps({"a": 1}))
    assert work.read_claims("04_mnist") == {"a": 1}
    work.write_claims({"a": 2})
    assert work.read_claims("04_mnist") == {"a": 2}
    assert json.loads(earlier.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="JSON"):
        work.write_metrics({"a": float("nan")})

    with pytest.raises(MissingResultError, match=r"no MLP-0\.csv of 04_mnist in profile 'quick': make it with"):
        work.result("04_mnist", "MLP-0.csv")
    for folder in (tmp_path, tmp_path / "out"):
        file = folder / "results" / "quick" / "04_mnist" / "MLP-0.csv"
        write_atomically(file, "")
        assert work.result("04_mnist", "MLP-0.csv") == file


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


def board(verdicts: list[str], **fields: list[str] | str) -> pd.DataFrame:
    rows = {"short": "it works", "here": "1 [0, 2]", "whose": "paper", "source": "Table 1", "notebook": "04_toy"}
    return pd.DataFrame({**rows, **fields, "verdict": verdicts})


def test_scoreboard_shows_every_claim() -> None:
    names = ["one", "two", "three", "four"]
    measured = ["1", "x" * 5 + " y" * 60, "3", "4"]
    table = board([str(v) for v in Verdict], short=names, here=measured, whose=["paper", "paper", "later", "later"])
    figure = draw_scoreboard(table, "Claims")
    texts = [text.get_text() for text in figure.axes[0].texts]
    for sign in "✓✗?·":
        assert texts.count(sign) == 1
    assert set(names) <= set(texts)
    assert any(text.startswith("xxxxx y") and text.endswith("…") for text in texts), "cut, and marked as cut"
    styles = {text.get_text(): text.get_style() for text in figure.axes[0].texts}
    assert [styles[name] for name in names] == ["normal", "normal", "italic", "italic"]
    plt.close(figure)


def test_nothing_in_the_scoreboard_of_full_scale_lies_over_something_else(root: Path) -> None:
    figure = draw_scoreboard(pd.DataFrame(read_board(root)).T, "Claims")
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    for k, one in enumerate(boxes):
        for other in range(k):
            assert not one.overlaps(boxes[other]), (texts[k].get_text(), texts[other].get_text())
        assert one.x1 <= figure.bbox.x1, texts[k].get_text()
    plt.close(figure)


def test_the_legend_of_the_scoreboard_counts_the_verdicts() -> None:
    verdicts = [str(verdict) for count, verdict in enumerate(Verdict, 1) for _ in range(count)]
    figure = draw_scoreboard(board(verdicts), "Claims")
    legend = figure.axes[0].texts[-1].get_text()
    for count, verdict in enumerate(Verdict, 1):
        assert re.search(rf"\S {verdict}: {count}(\s|$)", legend), legend
    plt.close(figure)


def test_animations_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    frames = [torch.eye(4), torch.ones(4, 4), torch.eye(4).flip(0)]
    first, second = (save_animation(frames, tmp_path / name) for name in ("a", "b"))
    assert first == tmp_path / "a.gif"
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert picture.size == (12, 12)
        assert picture.n_frames == 4  # forth and back
        # The first row of a density is drawn below.
        assert picture.convert("RGB").getpixel((0, 11)) != picture.convert("RGB").getpixel((0, 0))
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
