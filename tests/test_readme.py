"""What the README says works."""

import doctest
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

import neural_ode
from neural_ode.errors import FileError
from reproduction.claims import decide, describe, load_claims
from reproduction.pipeline import readme
from reproduction.pipeline.readme import gallery, marks, scoreboard
from reproduction.pipeline.site import landing

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    for example in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(example, "README.md", "exec"), {})
    forward, backward = capsys.readouterr().out.split()
    assert int(forward) > 8
    assert int(backward) > 8


def test_the_table_of_methods_is_complete() -> None:
    table = README[README.index("| `method=` |") : README.index("### Instead of torchdiffeq")]
    assert set(re.findall(r"`(\w+)`", table)) >= set(neural_ode.METHODS)


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/mnist/README.md"):
        file = ROOT / name
        for target in re.findall(r"\]\(([^)]+)\)", file.read_text()):
            assert target.startswith("https://") or (file.parent / target).exists(), target


def test_figures_in_the_table_are_made_by_the_pipeline() -> None:
    made = (ROOT / "dvc.yaml").read_text().replace("${item.profile}", "quick")
    named = re.findall(r"^\| `(\w+\.svg)`", README, re.MULTILINE)
    assert len(named) >= 4
    for name in named:
        assert f"figures/quick/{name}" in made


def test_every_notebook_is_listed() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in README


def made(part: str) -> str:
    begin, end = marks(part)
    return README.partition(begin)[2].partition(end)[0]


def test_the_scoreboard_shows_the_committed_results() -> None:
    board = json.loads((ROOT / "figures" / "paper" / "11_scoreboard.claims.json").read_text())
    assert set(board) == set(load_claims())
    assert made("scoreboard") == scoreboard(board)
    for notebook in {row["notebook"] for row in board.values()} - {"–"}:
        measured = ROOT / "figures" / "paper" / f"{notebook}.claims.json"
        if measured.exists():
            for id, measurement in json.loads(measured.read_text()).items():
                assert board[id]["here"] == (describe(load_claims()[id], measurement) or "–")
                assert board[id]["verdict"] == str(decide(load_claims()[id], measurement, "paper"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "is damaged"),
        ("[]", "must hold names with values, got list"),
        ('{"a.b": 3}', r"is damaged \(a\.b: no claim, item"),
        ('{"a.b": {"claim": "It works."}}', r"is damaged \(a\.b: no item, paper"),
        ("verdict", r"is damaged \(fig1\.euler_limit: unknown verdict 'hold'\)"),
    ],
)
def test_a_damaged_scoreboard_is_named(
    content: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "README.md").write_text(README)
    file = tmp_path / "figures" / "paper" / "11_scoreboard.claims.json"
    file.parent.mkdir(parents=True)
    if content == "verdict":
        text = (ROOT / file.relative_to(tmp_path)).read_text()
        file.write_text(text.replace('"verdict": "holds"', '"verdict": "hold"', 1))
    elif content is not None:
        file.write_text(content)
    monkeypatch.chdir(tmp_path)
    assert readme.main() == 1
    assert re.search(rf"11_scoreboard\.claims\.json {words}.*dvc repro scoreboard@paper", capsys.readouterr().err)
    assert (tmp_path / "README.md").read_text() == README
    with pytest.raises(FileError, match=words):
        landing(tmp_path)


def test_a_figure_without_its_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "12_more.failed.ipynb").touch()
    with pytest.raises(FileError, match=r"12_more_a\.png was made by no notebook beside it"):
        readme.made_by(tmp_path / "12_more_a.png")


def test_the_gallery_shows_every_committed_figure() -> None:
    assert made("gallery") == gallery(ROOT)
    assert {path.name for path in (ROOT / "figures" / "paper").glob("*.png")} == {
        Path(name).name for name in re.findall(r'<img src="([^"]+)"', made("gallery"))
    }


def test_every_make_target_is_phony_and_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    for target in targets[1].split():
        assert re.search(rf"^# make {target}\b", makefile, re.MULTILINE), target


def test_citation_is_yaml() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["year"] == 2018


def test_docstring_examples() -> None:
    assert doctest.testmod(importlib.import_module("neural_ode.solve")).failed == 0
