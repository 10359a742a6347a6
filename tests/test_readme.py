"""What the README says works."""

import doctest
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

import neural_ode
from neural_ode.errors import FileError, UnknownNameError
from reproduction.claims import decide, describe, load_claims
from reproduction.meaning import code_cells
from reproduction.pipeline import readme
from reproduction.pipeline.board import OTHERS, read_board, tally
from reproduction.pipeline.contents import FILE, Contents, Glance, Listed, captions, load_contents
from reproduction.pipeline.readme import figures_page, glance, marks, notebooks, parts, pictures, trained
from reproduction.pipeline.results_page import results_page
from reproduction.pipeline.site import landing
from reproduction.rules import Verdict

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("library", "running")}
RESULTS = ROOT / "figures" / "paper"


@pytest.mark.parametrize("text", [README, GUIDES["library"]], ids=["README", "library"])
def test_examples_run(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    forward, backward = capsys.readouterr().out.split()
    assert int(forward) > 8
    assert int(backward) > 8


def test_the_first_page_is_one_page() -> None:
    assert len(README.encode()) <= 8192
    assert len(README.splitlines()) <= 130
    assert max(map(len, README.splitlines())) <= 120


@pytest.mark.parametrize("of", ["METHODS", "GRADIENTS"])
def test_tables_of_choices_are_complete(of: str) -> None:
    """The README has all ways to differentiate and a few methods; the guide has all of both."""
    names = set(getattr(neural_ode, of))
    told = set(re.findall(r"`(\w+)`", "\n".join(x for x in GUIDES["library"].splitlines() if x.startswith("|"))))
    assert names <= told
    if of == "GRADIENTS":
        assert names <= set(re.findall(r"`(\w+)`", README))
    shown = re.findall(r"`(\w+)`", README.partition("| `method=` |")[2].partition("\n\n")[0])
    assert set(shown) <= set(neural_ode.METHODS)


PAGES = ("README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/mnist/README.md", "docs/library.md")
PAGES += ("docs/recipes.md", "docs/running.md", "benchmarks/README.md", "figures/README.md")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    file = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text()):
        path, _, anchor = target.partition("#")
        page = file.parent / path if path else file
        assert target.startswith("https://") or page.exists(), target
        if anchor and not target.startswith("https://"):
            headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def drawn() -> set[str]:
    """The figures that notebooks save under a name of their own."""
    return {
        f"{path.stem}/{name}"
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in code_cells(path)
        for name in re.findall(r'work\.figure\("(\w+)"\)', cell)
    }


def test_every_figure_has_a_caption() -> None:
    told = captions(load_contents())
    assert {name for name in told if not list(RESULTS.glob(f"{name}.gif"))} == drawn()
    assert {f"{file.parent.name}/{file.stem}" for file in RESULTS.glob("*/*.gif")} <= set(told)
    assert len(drawn()) >= 20
    assert all(len(caption) > 10 and not caption.endswith(".") for caption in told.values())


def test_every_notebook_is_listed() -> None:
    names = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert list(load_contents().notebooks) == names
    assert all(f"(notebooks/{name}.ipynb)" in README for name in names)


def made(part: str) -> str:
    begin, end = marks(part)
    return README.partition(begin)[2].partition(end)[0]


def test_what_is_made_shows_the_committed_results() -> None:
    board, claims, contents = read_board(ROOT), load_claims(), load_contents()
    assert set(board) == set(claims)
    assert (ROOT / "RESULTS.md").read_text() == results_page(board, claims, contents)
    assert (ROOT / "figures" / "README.md").read_text() == figures_page(ROOT, contents)
    for part, text in parts(ROOT, board, claims, contents).items():
        assert made(part) == text
    for notebook in {row["notebook"] for row in board.values()}:
        measured = RESULTS / notebook / "claims.json"
        if measured.exists():
            for id, measurement in json.loads(measured.read_text()).items():
                assert board[id]["here"] == (describe(claims[id], measurement) or "–")
                assert board[id]["verdict"] == str(decide(claims[id], measurement, "paper"))


def test_nothing_else_in_the_readme_is_made() -> None:
    """A mark that nothing fills would show what was true once."""
    filled = set(parts(ROOT, read_board(ROOT), load_claims(), load_contents()))
    begun = re.findall(r"<!-- (\w+): made by python -m reproduction\.pipeline\.readme -->", README)
    assert sorted(begun) == sorted(filled)
    assert sorted(begun) == sorted(re.findall(r"<!-- end of (\w+) -->", README))


def row(verdict: Verdict, claim: str = "It works.", whose: str = "paper") -> dict[str, str]:
    fields = {"claim": claim, "source": "Table 1", "published": "–", "here": "a: 1", "rule": "below 2"}
    fields |= {"short": "it works"}
    return fields | {"verdict": str(verdict), "notebook": "01_toy", "whose": whose, "needs": "more seeds"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a README that nothing has been put into, four figures, and a claim of each verdict."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    text = "# Title\n" + "between\n".join(
        "{}stale\n{}\n".format(*marks(x)) for x in ("results", "front", "notebooks")
    )
    (tmp_path / "README.md").write_text(text + "after\n")
    for name in ("01_toy/01_toy.ipynb", *(f"01_toy/{x}.png" for x in "abcd"), "11_scoreboard/claims.json"):
        file = tmp_path / "figures" / "paper" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    board = {id: row(verdict, f"{verdict.name}.") for id, verdict in zip(IDS, Verdict, strict=True)}
    file.write_text(json.dumps(board))
    contents = Contents([], {"01_toy/a": "A: one", "01_toy/b": "B: two"}, TOY)
    monkeypatch.setattr(readme, "load_contents", lambda: contents)
    monkeypatch.chdir(tmp_path)
    return tmp_path


IDS = list(load_claims())[: len(Verdict)]
TOY = {"01_toy": Listed("Table 1", 2, {"d": "the last", "a": "the first", "gone": "never drawn"}, "everything")}


def test_results_and_parts_of_the_readme_are_made(project: Path) -> None:
    page = project / "RESULTS.md"
    changed = [f"{name} is another text" for name in ("README.md", "RESULTS.md", "figures/README.md")]
    assert readme.write(project) == changed
    assert readme.write(project) == []
    said = "Of 4 claims of the paper, 1 holds, 1 does not, 1 is undecided, 1 is not measured at full scale yet."
    text = (project / "README.md").read_text()
    assert text.startswith(f"# Title\n{marks('results')[0]}{said}\n\n| | paper |")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert (
        "| ![A](figures/paper/01_toy/a.png) | ![B](figures/paper/01_toy/b.png) |\n|---|---|\n| A: one | B: two |"
        in text
    )
    assert "| [01](notebooks/01_toy.ipynb) | Table 1 | 2 min | minutes | 1 ✓ 1 ✗ 1 ? 1 · | everything |" in text

    # An entry for each claim, below its notebook, in the order of the claims.
    text = page.read_text()
    assert text.startswith(f"# Results: every claim, one by one\n\n{said}\n")
    assert "**✗ does not hold:** it works." in text
    assert "## Table 1\n\n1 ✓ 1 ✗ 1 ? 1 · · notebook [01_toy](figures/paper/01_toy/01_toy.ipynb)\n" in text
    entries = re.findall(r"^### (.) it works\n\n(\w+)\. \(Table 1\)\n\n((?:\*.*\n)*)", text, re.MULTILINE)
    assert [entry[:2] for entry in entries] == [(verdict.sign, verdict.name) for verdict in Verdict]
    for verdict, (*_, facts) in zip(Verdict, entries, strict=True):
        needs = "* **To decide it:** more seeds\n" if verdict is Verdict.UNDECIDED else ""
        assert facts == f"* **Here:** a: 1\n* **Rule:** below 2\n{needs}"
    (project / "figures" / "paper" / "11_scoreboard" / "claims.json").write_text(
        json.dumps({IDS[0]: row(Verdict.HOLDS)})
    )
    assert readme.write(project) == changed[:2]
    assert "does not hold:**" not in page.read_text()
    said = "Of 1 claim of the paper, 1 holds, 0 do not, 0 are undecided.\n"
    assert said in (project / "README.md").read_text()


def test_ways_of_measuring_have_a_line_each() -> None:
    one = row(Verdict.FAILS) | {"here": "error – a: 1; b: ∞", "published": "2"}
    page = results_page({IDS[0]: one}, load_claims(), Contents([], {}, {}))
    assert "* **Paper:** 2\n* **Here:** error\n  * a: 1\n  * b: not finished\n* **Rule:**" in page
    other = results_page({IDS[0]: one | {"here": "error – a: 1"}}, load_claims(), Contents([], {}, {}))
    assert "* **Here:** error – a: 1\n" in other


def test_results_at_a_glance(project: Path) -> None:
    """The interval where there is one way of measuring, else the estimates; the paper's number or what is told."""
    claims = load_claims()
    board = {id: row(Verdict.FAILS) for id in ("table1.odenet_error", "table2.rnn_rmse", "memory.resnet_linear")}
    measured = {
        "table1.odenet_error": {"": {"test error": {"estimate": 0.4, "low": 0.3, "high": 0.5}}},
        "table2.rnn_rmse": {
            n: {"RMSE": {"estimate": x, "low": 0, "high": 9}} for n, x in (("30", 0.3), ("50", 0.0125))
        },
        "memory.resnet_linear": {
            "": {
                "slope": {"estimate": 1.0, "low": None, "high": None},
                "R²": {"estimate": 0.5, "low": 0.4, "high": 0.6},
            }
        },
    }
    for id, measurement in measured.items():
        file = project / "figures" / "paper" / claims[id].notebook / "claims.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({id: measurement}))
    rows = [Glance("table1.odenet_error", "one"), Glance("table2.rnn_rmse", "two", paper="more")]
    rows += [Glance("memory.resnet_linear", "three", quantity="R²")]
    table = glance(project, board, claims, rows).splitlines()[2:]
    assert table == [
        "| one | 0.42 % | 0.40 [0.30, 0.50] % | ✗ |",
        "| two | more | 0.30 / 0.013 | ✗ |",
        "| three | O(L) | 0.50 [0.40, 0.60] | ✗ |",
    ]
    for missing in (Glance("table1.mlp_error", "one"), Glance("table1.rknet_error", "one")):
        with pytest.raises(
            FileError, match=r"04_mnist/claims\.json has no table1\.\w+, of which contents\.yaml tells"
        ):
            glance(project, board, claims, [missing])
    with pytest.raises(UnknownNameError, match=r"unknown claim 'table1\.odenet'"):
        glance(project, board, claims, [Glance("table1.odenet", "one")])


def test_hours_are_those_of_trainings(project: Path) -> None:
    folder = project / "results" / "paper" / "01_toy" / "more"
    folder.mkdir(parents=True)
    for name, seconds in (("a", [1, 4000]), ("b", [2, 3200]), ("times", [9, 9])):
        (folder / f"{name}.csv").write_text("loss,seconds\n" + "".join(f"0.5,{x}\n" for x in seconds))
        if name != "times":
            (folder / f"{name}.safetensors").touch()
    assert trained(project, "01_toy") == 7200
    (folder / "history.csv").write_text("epoch,loss,seconds\n1,0.5,8\n2,0.4,36\n")
    (folder / "ways.csv").write_text("name,epoch,seconds\ndirect,1,8\ndirect,2,20\nbacksolve,1,16\n")
    assert trained(project, "01_toy") == 7236 + 20 + 16
    assert "| 2.0 h |" in notebooks(project, {}, Contents([], {}, TOY))


def test_damaged_contents_are_named(tmp_path: Path) -> None:
    file = tmp_path / "contents.yaml"
    for wrong in (
        "glance: []\nfront: {}\n",
        "glance: [{claims: x}]\nfront: {}\nnotebooks: {}\n",
        FILE.read_text() + "  a: 3\n",
    ):
        file.write_text(wrong)
        load_contents.cache_clear()
        with pytest.raises(
            FileError, match=r"contents\.yaml is damaged .*the first lines of contents\.yaml explain"
        ):
            load_contents(file)
    load_contents.cache_clear()


def test_whose_claims_they_are_is_counted_apart() -> None:
    rows = [row(Verdict.HOLDS), row(Verdict.FAILS), row(Verdict.HOLDS, "Found.", "later")]
    rows += [row(Verdict.UNDECIDED, "Open.", "later"), row(Verdict.HOLDS, "Old.", "background")]
    board = {f"a.{k}": one for k, one in enumerate(rows)}
    assert tally(board) == (
        "Of 2 claims of the paper, 1 holds, 1 does not, 0 are undecided.\n"
        "Of 2 later findings, 1 holds, 0 do not, 1 is undecided.\n"
        "Of 1 result from before the paper, 1 holds, 0 do not, 0 are undecided."
    )
    assert tally(board, ["later"]).startswith("Of 2 later findings")
    known = dict(zip(board, load_claims().values(), strict=False))
    page = results_page(board, known, Contents([], {}, TOY))
    headings = re.findall(r"^## (.*)", page, re.MULTILINE)
    assert headings[:3] == ["Table 1", OTHERS["later"], OTHERS["background"]]
    later = page.partition(OTHERS["later"])[2].partition("\n## ")[0]
    assert later.count("* **Notebook:** [01_toy]") == 2
    assert "Old." not in later


def test_a_changed_rule_is_listed_with_what_it_said() -> None:
    id, claim = next((id, claim) for id, claim in load_claims().items() if claim.amended)
    page = results_page({id: row(Verdict.HOLDS)}, {id: claim}, load_contents())
    changed = page.partition("## Rules that changed\n")[2]
    assert changed.count(f"### {claim.short} (now: holds)\n") == 1
    for entry in claim.amended:
        assert f"{entry.date}: {entry.reason}\n\n* **Rule before:** {entry.rule}\n" in changed
        assert f"* **It said *{entry.verdict}* of:**" in changed
        for way in entry.here.partition(" – ")[2].split("; "):
            assert way.replace("∞", "not finished") in changed
    assert "## Rules that changed" not in results_page({}, {}, load_contents())


def test_figures_come_in_reading_order_with_captions(project: Path) -> None:
    contents = readme.load_contents()
    assert [picture.stem for picture in pictures(project, contents)] == ["d", "a", "b", "c"]
    (project / "figures" / "paper" / "01_toy" / "motion.gif").touch()
    page = figures_page(project, contents)
    assert re.findall(r"^\*(.*)\.\*$", page, re.MULTILINE) == [
        "the last",
        "the first",
        "01_toy/b",
        "01_toy/c",
        "01_toy/motion",
    ]
    assert "## 01_toy: Table 1\n\n[![the last](paper/01_toy/d.png)](paper/01_toy/01_toy.ipynb)\n" in page


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "is damaged"),
        ("[]", "must hold names with values, got list"),
        ('{"a.b": 3}', r"is damaged \(a\.b: no claim, short"),
        ('{"a.b": {"claim": "It works."}}', r"is damaged \(a\.b: no short, whose"),
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


def test_every_committed_figure_is_shown() -> None:
    page = (ROOT / "figures" / "README.md").read_text()
    shown = {(ROOT / "figures" / name).resolve() for name in re.findall(r"\]\((paper/[\w/]+\.(?:png|gif))\)", page)}
    assert shown == {*RESULTS.rglob("*.png"), *RESULTS.rglob("*.gif")}
    assert {path.parent.name for path in shown} == {x.stem for x in (ROOT / "notebooks").glob("*.ipynb")}


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
