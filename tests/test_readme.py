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
from reproduction.meaning import code_cells
from reproduction.pipeline import readme
from reproduction.pipeline.board import OTHERS, SIGNS, tally
from reproduction.pipeline.readme import gallery, marks
from reproduction.pipeline.results_page import results_page
from reproduction.pipeline.site import landing
from reproduction.rules import Verdict

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "figures" / "paper"


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
    for name in ("README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/mnist/README.md"):
        file = ROOT / name
        for target in re.findall(r"\]\(([^)]+)\)", file.read_text()):
            assert target.startswith("https://") or (file.parent / target).exists(), target


def drawn() -> set[str]:
    """The figures that notebooks save under a name of their own, as the README's table names them."""
    return {
        f"{path.stem}/{name}"
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in code_cells(path)
        for name in re.findall(r'work\.figure\("(\w+)"\)', cell)
    }


def test_figures_in_the_table_are_those_that_notebooks_draw() -> None:
    assert set(re.findall(r"^\| `([\w/]+)\.svg`", README, re.MULTILINE)) == drawn()
    assert len(drawn()) >= 20


def test_every_notebook_is_listed() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in README


def made(part: str) -> str:
    begin, end = marks(part)
    return README.partition(begin)[2].partition(end)[0]


def test_what_is_made_shows_the_committed_results() -> None:
    board = json.loads((RESULTS / "11_scoreboard" / "claims.json").read_text())
    assert set(board) == set(load_claims())
    assert (ROOT / "RESULTS.md").read_text() == results_page(board, load_claims())
    assert made("tally") == f"{tally(board)}\n"
    for notebook in {row["notebook"] for row in board.values()}:
        measured = RESULTS / notebook / "claims.json"
        if measured.exists():
            for id, measurement in json.loads(measured.read_text()).items():
                assert board[id]["here"] == (describe(load_claims()[id], measurement) or "–")
                assert board[id]["verdict"] == str(decide(load_claims()[id], measurement, "paper"))


def test_nothing_else_in_the_readme_is_made() -> None:
    """A mark that nothing fills would show what was true once."""
    assert set(re.findall(r"<!-- (\w+): made by python -m reproduction\.pipeline\.readme -->", README)) == {
        *("tally", "gallery")
    }
    begun = re.findall(r"<!-- ([\w ]+): made by", README)
    assert sorted(begun) == sorted(re.findall(r"<!-- end of ([\w ]+) -->", README))


def row(verdict: Verdict, claim: str = "It works.", whose: str = "paper") -> dict[str, str]:
    fields = {"claim": claim, "source": "Table 1", "published": "–", "here": "a: 1", "rule": "below 2"}
    return fields | {"verdict": str(verdict), "notebook": "01_toy", "whose": whose, "needs": "more seeds"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a README that nothing has been put into, four figures, and a claim of each verdict."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    begin, end = marks("tally")
    text = f"# Title\n{begin}old\n{end}\n" + "between\n{}old\n{}\nafter\n".format(*marks("gallery"))
    (tmp_path / "README.md").write_text(text)
    for name in ("01_toy/01_toy.ipynb", *(f"01_toy/{x}.png" for x in "abcd"), "11_scoreboard/claims.json"):
        file = tmp_path / "figures" / "paper" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    board = {f"toy.{verdict.name}": row(verdict, f"{verdict.name} | {k}") for k, verdict in enumerate(Verdict)}
    file.write_text(json.dumps(board))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_results_and_parts_of_the_readme_are_made(project: Path) -> None:
    page = project / "RESULTS.md"
    assert readme.write(project) == ["README.md is another text", "RESULTS.md is another text"]
    assert readme.write(project) == []
    said = "Of 4 claims of the paper, 1 holds, 1 does not, 1 is undecided, 1 is not measured at full scale yet."
    text = (project / "README.md").read_text()
    assert text.startswith(f"# Title\n{marks('tally')[0]}{said}\n{marks('tally')[1]}\nbetween\n")
    assert text.endswith(f"{gallery(project)}{marks('gallery')[1]}\nafter\n")
    assert said in page.read_text()

    # A table for each verdict: first what does not hold.
    tables = re.findall(r"^## (What .*)\n\n((?:\|.*\n)*)", page.read_text(), re.MULTILINE)
    order = (Verdict.FAILS, Verdict.UNDECIDED, Verdict.HOLDS, Verdict.UNTESTED)
    assert len(tables) == len(order)
    for verdict, (_, table) in zip(order, tables, strict=True):
        *_, line = table.splitlines()
        assert line.startswith(f"| {SIGNS[verdict]} | {verdict.name} \\| ")
        needs = "<br><sub>To decide it: more seeds</sub>" if verdict is Verdict.UNDECIDED else ""
        assert line.endswith(
            f"(Table 1)<br><sub>Rule: below 2</sub> | – | a: 1{needs} | "
            "[01_toy](figures/paper/01_toy/01_toy.ipynb) |"
        )
        assert len(re.findall(r"(?<!\\)\|", line)) == 6
    (project / "figures" / "paper" / "11_scoreboard" / "claims.json").write_text(
        json.dumps({"toy.only": row(Verdict.HOLDS)})
    )
    assert readme.write(project) == ["README.md is another text", "RESULTS.md is another text"]
    assert re.findall(r"^## (What .*)", page.read_text(), re.MULTILINE) == ["What holds"]
    said = "Of 1 claim of the paper, 1 holds, 0 do not, 0 are undecided.\n"
    assert said in (project / "README.md").read_text()


def test_whose_claims_they_are_is_counted_apart() -> None:
    rows = [row(Verdict.HOLDS), row(Verdict.FAILS), row(Verdict.HOLDS, "Found.", "later")]
    rows += [row(Verdict.UNDECIDED, "Open.", "later"), row(Verdict.HOLDS, "Old.", "background")]
    board = {f"a.{k}": one for k, one in enumerate(rows)}
    assert tally(board) == (
        "Of 2 claims of the paper, 1 holds, 1 does not, 0 are undecided.\n"
        "Of 2 later findings, 1 holds, 0 do not, 1 is undecided.\n"
        "Of 1 result from before the paper, 1 holds, 0 do not, 0 are undecided."
    )
    page = results_page(board, {})
    headings = re.findall(r"^## (.*)", page, re.MULTILINE)
    assert headings == ["What does not hold", "What holds", OTHERS["later"], OTHERS["background"]]
    later = page.partition(OTHERS["later"])[2].partition("\n## ")[0]
    assert later.index("Open.") < later.index("Found."), "what is undecided before what holds"
    assert "Old." not in later


def test_a_changed_rule_is_listed_with_what_it_said() -> None:
    id, claim = next((id, claim) for id, claim in load_claims().items() if claim.amended)
    page = results_page({id: row(Verdict.HOLDS)}, {id: claim})
    changed = page.partition("## Rules that changed, and what they said before")[2]
    assert changed.count(f"| `{id}` |") == len(claim.amended)
    for entry in claim.amended:
        assert f"| {entry.verdict}: {entry.here}<br><sub>Rule: {entry.rule}</sub> |".replace("|", "") in (
            changed.replace("\\|", "|").replace("|", "")
        )
        assert f"{entry.reason} ({entry.date})" in changed
    assert "Rules that changed" not in results_page({"a.b": row(Verdict.HOLDS)}, {})


def test_the_gallery_is_a_table_of_links(project: Path) -> None:
    *_, first, second = gallery(project).splitlines()
    image = '[<img src="figures/paper/01_toy/d.png" width="270" alt="01_toy/d">](figures/paper/01_toy/01_toy.ipynb)'
    assert first.count("<img") == 3
    assert second == f"| {image} |  |  |"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "is damaged"),
        ("[]", "must hold names with values, got list"),
        ('{"a.b": 3}', r"is damaged \(a\.b: no claim, whose"),
        ('{"a.b": {"claim": "It works."}}', r"is damaged \(a\.b: no whose, source"),
        (
            json.dumps({"a.b": row(Verdict.HOLDS) | {"verdict": "hold"}}),
            r"is damaged \(a\.b: unknown verdict 'hold'\)",
        ),
    ],
)
def test_a_damaged_scoreboard_is_named(
    content: str | None, words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = project / "figures" / "paper" / "11_scoreboard" / "claims.json", Path("README.md").read_text()
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert readme.main() == 1
    assert re.search(rf"11_scoreboard/claims\.json {words}.*: make it with `make paper`", capsys.readouterr().err)
    assert Path("README.md").read_text() == before
    assert not Path("RESULTS.md").exists()
    with pytest.raises(FileError, match=words):
        landing(project)


def test_a_figure_without_its_notebook_is_named(project: Path) -> None:
    (project / "figures" / "paper" / "12_more").mkdir()
    (project / "figures" / "paper" / "12_more.failed.ipynb").touch()
    picture = project / "figures" / "paper" / "12_more" / "a.png"
    with pytest.raises(
        FileError, match=r"12_more/a\.png has no notebook beside it: delete it, or run its notebook"
    ):
        readme.notebook_of(picture)
    picture.with_name("12_more.ipynb").touch()
    assert readme.notebook_of(picture) == Path("figures", "paper", "12_more", "12_more.ipynb")


def test_the_gallery_shows_every_committed_figure() -> None:
    assert made("gallery") == gallery(ROOT)
    shown = re.findall(r'<img src="([^"]+)"', made("gallery"))
    assert set(shown) == {path.relative_to(ROOT).as_posix() for path in RESULTS.rglob("*.png")}
    assert {path.parent.name for path in map(Path, shown)} == {x.stem for x in (ROOT / "notebooks").glob("*.ipynb")}


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
