"""Drawing everything anew: what differs from before is found, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from reproduction.pipeline import identity, readme, redraw
from reproduction.pipeline.contents import Contents
from reproduction.rules import Verdict
from reproduction.workspace import DRAW_VARIABLE, OUTPUT_VARIABLE

ROOT = Path(__file__).parents[1]
CLAIM = "fig1.euler_limit"
NAMES = ["01_toy", "02_toy", "11_scoreboard"]
BOARD = {
    **{"claim": "It works.", "whose": "paper", "source": "Figure 1", "published": "–", "here": "–"},
    **{"rule": "below 2", "verdict": "holds", "needs": "", "short": "it works"},
}


def slope(low: float, high: float) -> dict[str, Any]:
    return {CLAIM: {"": {"slope": {"estimate": (low + high) / 2, "low": low, "high": high, "n": 3}}}}


def outputs(printed: str = "2 of 2", cell: str = "0.5", picture: str = "AAAA") -> list[nbformat.NotebookNode]:
    table = f"<table><tr><td>{cell}</td></tr></table>"
    return [
        nbformat.v4.new_output("stream", name="stdout", text=printed),
        nbformat.v4.new_output("execute_result", {"text/html": table, "text/plain": "<HTML>"}, execution_count=1),
        nbformat.v4.new_output("display_data", {"image/png": picture, "text/plain": "<Figure>"}),
        nbformat.v4.new_output("display_data", {"text/markdown": "the `source`", "text/plain": "<Markdown>"}),
    ]


SAYS: dict[str, Any] = {
    "claims": slope(-1.1, -0.9),
    "metrics": {"slope": -1.0},
    "outputs": outputs(),
    "svg": "<svg/>",
}
"""What a notebook says at first."""


def say(folder: Path, says: dict[str, Any]) -> None:
    """Write what a notebook of this name says, as the runner does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("claims", "metrics"):
        (folder / f"{name}.json").write_text(json.dumps(says[name]))
    (folder / "fig.svg").write_text(says["svg"])
    cells = [nbformat.v4.new_markdown_cell("# Title", id="title")]
    cells += [
        nbformat.v4.new_code_cell("1", id=f"cell-{k}", outputs=[one]) for k, one in enumerate(says["outputs"])
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{folder.name}.ipynb")


def found(folder: Path, **changes: Any) -> list[str]:
    """The differences after these changes."""
    say(folder / "01_toy", SAYS)
    before = redraw._shown(folder / "01_toy", "quick")
    say(folder / "01_toy", SAYS | changes)
    return redraw.differences("01_toy", before, redraw._shown(folder / "01_toy", "quick"))


@pytest.mark.parametrize(
    ("changes", "what", "was", "now"),
    [
        (
            {"claims": slope(-1.1, -0.7)},
            f"claim {CLAIM}",
            "holds: slope −1.00 [−1.10, −0.90]",
            "undecided: slope −0.9",
        ),
        ({"claims": slope(-0.7, -0.5)}, f"claim {CLAIM}", "holds: ", "does not hold: "),
        (
            {"claims": slope(-1.1, -0.95)},
            f"claim {CLAIM}",
            "holds: slope −1.00 [−1.10, −0.90]",
            "holds: slope −1.02",
        ),
        ({"claims": {}}, f"claim {CLAIM}", "holds: ", None),
        ({"metrics": {"slope": -1.01}}, "metric slope", "-1", "-1.01"),
        ({"metrics": {"slope": -1.0, "more": 2}}, "metric more", None, "2"),
        ({"outputs": outputs(printed="1 of 2")}, "cell cell-0", "2 of 2", "1 of 2"),
        ({"outputs": outputs(cell="0.6")}, "cell cell-1", "<table><tr><td>0.5", "<table><tr><td>0.6"),
        ({"outputs": outputs()[:3]}, "cell cell-3", "the `source`", None),
    ],
)
def test_what_is_said_otherwise_is_found(
    changes: dict[str, Any], what: str, was: str | None, now: str | None, tmp_path: Path
) -> None:
    (line,) = found(tmp_path, **changes)
    begin, _, rest = line.partition(": was ")
    assert begin == f"01_toy, {what}"
    before, _, after = rest.partition(", is ")
    for text, expected in ((before, was), (after, now)):
        plain = re.sub("<[^>]*>", "", expected or "nothing")
        assert text.startswith(f"'{plain}")


def test_of_a_long_text_the_place_where_it_differs_is_shown(tmp_path: Path) -> None:
    words = [f"word{k}" for k in range(100)]
    say(tmp_path / "01_toy", SAYS | {"outputs": outputs("none", " ".join(words))})
    before = redraw._shown(tmp_path / "01_toy", "quick")
    words[60] = "other"
    say(tmp_path / "01_toy", SAYS | {"outputs": outputs("none", " ".join(words))})
    (line,) = redraw.differences("01_toy", before, redraw._shown(tmp_path / "01_toy", "quick"))
    assert "word60 word61" in line
    assert "other word61" in line
    assert len(line) < 350


def test_every_difference_has_a_line(tmp_path: Path) -> None:
    changes = {"claims": slope(-0.7, -0.5), "metrics": {"slope": 3.0}, "outputs": outputs("none", "7")}
    assert [line.partition(": was ")[0] for line in found(tmp_path, **changes)] == [
        f"01_toy, {what}" for what in (f"claim {CLAIM}", "metric slope", "cell cell-0", "cell cell-1")
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outputs": outputs(picture="BBBB")},
        {"svg": "<svg>other</svg>"},
        {"metrics": {"slope": -1.0000001}},  # three digits count
        {"claims": slope(-1.1, -0.9) | {"no.claim_any_more": {}}},
    ],
)
def test_pictures_and_what_nobody_reads_do_not_count(changes: dict[str, Any], tmp_path: Path) -> None:
    assert found(tmp_path, **changes) == []


def test_a_verdict_depends_on_the_profile(tmp_path: Path) -> None:
    claims = {"table1.mlp_error": {"": {"test error": {"estimate": 1.5, "low": 1.4, "high": 1.6, "n": 3}}}}
    say(tmp_path / "04_mnist", SAYS | {"claims": claims})
    quick, paper = (redraw._shown(tmp_path / "04_mnist", x)["claim table1.mlp_error"] for x in ("quick", "paper"))
    assert quick.startswith(f"{Verdict.UNTESTED}: test error 1.50 [1.40, 1.60] %")
    assert paper.partition(":")[0] in {Verdict.HOLDS, Verdict.UNDECIDED, Verdict.FAILS}


def test_a_measurement_for_another_rule_is_said_to_be_one(tmp_path: Path) -> None:
    """The rule changed, and the notebook has not run since: that is a difference, and no error."""
    (line,) = found(tmp_path, claims={CLAIM: {"slope": {"estimate": -1.0}}})
    assert f"claim {CLAIM}: was 'holds: slope" in line
    assert "is 'measured for another rule: " in line


def test_what_was_not_there_cannot_be_compared(tmp_path: Path) -> None:
    assert redraw._shown(tmp_path / "01_toy", "quick") == {}
    assert redraw.differences("01_toy", {}, {"metric slope": "1"}) == ["01_toy: there was nothing to compare with"]


# The command -----------------------------------------------------------------------------------------------------


def notebook(name: str) -> nbformat.NotebookNode:
    """Prints its value, and fails if that is 0."""
    parameters = "value: int = 1\nprofile: str = 'quick'" if name != "11_scoreboard" else "profile: str = 'quick'"
    made = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    made.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    made.cells.append(nbformat.v4.new_code_cell("from reproduction.workspace import Workspace"))
    made.cells.append(nbformat.v4.new_code_cell(f"work = Workspace.open({name!r}, profile)"))
    if name != "11_scoreboard":
        made.cells.append(nbformat.v4.new_code_cell("print('value', value)\nwork.write_metrics({'m': 1 / value})"))
    return made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two notebooks and a scoreboard."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    for name in ("notebooks", "params"):
        (tmp_path / name).mkdir()
    for name in NAMES:
        nbformat.write(notebook(name), tmp_path / "notebooks" / f"{name}.ipynb")
    values(tmp_path, 2, 2)
    real = identity.main
    mine = [str(tmp_path / "notebooks" / f"{name}.ipynb") for name in NAMES]
    monkeypatch.setattr(redraw.identity, "main", lambda arguments: real([arguments[0], *mine]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "lib"))
    for name in (OUTPUT_VARIABLE, DRAW_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def values(project: Path, first: int, second: int) -> None:
    text = f"01_toy: {{value: {first}}}\n02_toy: {{value: {second}}}\n11_scoreboard: {{}}\n"
    (project / "params" / "quick.yaml").write_text(text)


@pytest.fixture
def drawn(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Drawing without kernels: what each notebook says, which ones fail, and in which order they ran."""
    state: dict[str, Any] = {"says": dict.fromkeys(NAMES, SAYS), "fails": set(), "order": []}

    def draw(root: Path, name: str, profile: str) -> int:
        assert root == project
        state["order"].append(name)
        if name in state["fails"]:
            return 1
        say(root / "figures" / profile / name, state["says"][name])
        return 0

    monkeypatch.setattr(redraw, "_run", draw)
    return state


def test_without_check_differences_are_shown_and_with_it_they_are_a_failure(
    project: Path, drawn: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--profile=quick", "--jobs=1"]
    assert redraw.main(quick) == 0
    assert "01_toy: there was nothing to compare with" in capsys.readouterr().out
    assert drawn["order"] == NAMES, "the scoreboard reads the claims of the others"
    assert sorted(path.name for path in (project / ".identity").glob("*.ipynb")) == [f"{x}.ipynb" for x in NAMES]

    assert redraw.main([*quick, "--check"]) == 0
    shown = capsys.readouterr()
    assert "claims, metrics, tables and text as before" in shown.out
    assert shown.err == ""

    for before, metric, options, status in ((-1, 3, [], 0), (3, 4, ["--check"], 1)):
        drawn["says"] = drawn["says"] | {"02_toy": SAYS | {"metrics": {"slope": metric}}}
        assert redraw.main([*quick, *options]) == status
        shown = capsys.readouterr()
        assert f"02_toy, metric slope: was '{before}', is '{metric}'" in shown.out
        assert "1 differences" in shown.out
        assert "01_toy," not in shown.out
        assert ("are not what the code draws" in shown.err) == bool(options)


def test_notebooks_that_are_named_are_drawn_and_the_scoreboard(
    project: Path, drawn: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert redraw.main(["--profile=quick", "02_toy"]) == 0
    assert drawn["order"] == ["02_toy", "11_scoreboard"]
    assert "named notebooks of quick drawn" in capsys.readouterr().out
    drawn["order"].clear()
    assert redraw.main(["--profile=quick", "02_toy", "03_toy"]) == 1
    assert "unknown notebook '03_toy'" in capsys.readouterr().err
    assert drawn["order"] == []


def test_what_fails_is_named_and_the_others_are_drawn(
    project: Path, drawn: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn["fails"] = {"01_toy"}
    assert redraw.main(["--profile=quick"]) == 1
    assert "not drawn: 01_toy; what they said stands above" in capsys.readouterr().err
    assert (project / "figures" / "quick" / "02_toy" / "claims.json").exists()
    assert "11_scoreboard" not in drawn["order"], "it would show claims of before"
    drawn["fails"] = {"11_scoreboard"}
    assert redraw.main(["--profile=quick"]) == 1
    assert "not drawn: 11_scoreboard" in capsys.readouterr().err


def test_full_scale_writes_what_shows_it(
    project: Path, drawn: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readme, "load_contents", lambda: Contents([], {}, {}))
    text = "".join("{}old\n{}\n".format(*readme.marks(part)) for part in ("results", "front", "notebooks"))
    (project / "README.md").write_text(text)
    drawn["says"]["11_scoreboard"] = SAYS | {"claims": {CLAIM: BOARD | {"notebook": "01_toy"}}}
    assert redraw.main([]) == 0
    shown = capsys.readouterr().out
    assert "README.md is another text\nRESULTS.md is another text\nfigures/README.md is another text\n" in shown
    assert "all notebooks of paper drawn" in shown
    assert "Of 1 claim of the paper, 1 holds" in (project / "README.md").read_text()
    assert redraw.main(["--check"]) == 0
    capsys.readouterr()
    results = project / "RESULTS.md"
    results.write_text(results.read_text().replace("It works.", "It works well."))
    assert redraw.main(["--check"]) == 1
    assert "RESULTS.md is another text" in capsys.readouterr().out
    assert "It works." in results.read_text()


def test_a_profile_is_a_name_and_no_path(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert redraw.main(["--profile=../quick"]) == 1
    assert "profile must be a name" in capsys.readouterr().err


@pytest.mark.slow
def test_notebooks_are_run_and_a_failing_one_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In processes of their own, with real kernels."""
    values(project, 0, 2)
    assert redraw.main(["--profile=quick"]) == 1
    shown = capsys.readouterr()
    assert "01_toy, cell 5: ZeroDivisionError: division by zero" in shown.err
    assert "not drawn: 01_toy; what they said stands above" in shown.err
    figures = project / "figures" / "quick"
    assert not (figures / "01_toy").exists()
    assert json.loads((figures / "02_toy" / "metrics.json").read_text()) == {"m": 0.5}
    assert not (figures / "11_scoreboard").exists()

    values(project, 1, 4)
    assert redraw.main(["--profile=quick", "--check"]) == 1
    shown = capsys.readouterr()
    assert (figures / "11_scoreboard" / "11_scoreboard.ipynb").exists()
    for line in (
        "01_toy: there was nothing to compare with",
        "02_toy, metric m: was '0.5', is '0.25'",
        ": was 'value 2', is 'value 4'",
    ):
        assert line in shown.out
