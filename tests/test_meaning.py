"""What code means: what changes a fingerprint, and what does not."""

import ast
from pathlib import Path

import pytest

from reproduction import meaning as module
from reproduction.meaning import (
    LIBRARY,
    SourceError,
    behaviour,
    experiment_modules,
    imported_modules,
    meaning,
    meaning_of,
)
from reproduction.pipeline import identity
from reproduction.pipeline.identity import experiment_file, shown_source

NOTEBOOKS = sorted((LIBRARY.parent / "notebooks").glob("*.ipynb"))

CODE = '''
"""A module."""
from dataclasses import dataclass
from reproduction.training.loop import fit

RATE: float = 0.1


@dataclass
class Thing:
    """A thing."""

    width: int
    depth: int = 2


def train(steps: int, *, rate: float = RATE) -> list[float]:
    """Train it."""
    found = []
    for step in range(steps):
        found.append(step * rate)  # why
    return found


def nothing():
    """Only words."""
'''

SAME = {
    "docstring": ('"""Train it."""', '"""Train it well."""'),
    "no docstring": ('    """Train it."""\n', ""),
    "comment": ("  # why", ""),
    "annotation": ("rate: float = RATE", "rate: int | None = RATE"),
    "return": (") -> list[float]:", "):"),
    "layout": ("step * rate", "(step\n            * rate)"),
    "quotes": ("width: int", "width: 'int'"),
    "annotated name": ("RATE: float = 0.1", "RATE: object = 0.1"),
}
OTHER = {
    "constant": ("0.1", "0.2"),
    "type of a constant": ("depth: int = 2", "depth: int = 2.0"),
    "operator": ("step * rate", "step + rate"),
    "name": ("Thing", "Other"),
    "field": ("width: int\n    depth: int = 2", "depth: int = 2\n    width: int"),
    "default": ("rate: float = RATE", "rate: float = 1"),
    "decorator": ("@dataclass\n", ""),
    "import": ("loop import fit", "loop import Fit as fit"),
    "text that is used": ("found = []", 'found = ["text"]'),
    "None is a value": ("return found", "return None"),
    "no value": ("return found", "return"),
    "star": ("*, rate", "rate"),
}


def fingerprint(text: str, tmp_path: Path) -> str:
    file = tmp_path / "code.py"
    file.write_text(text)
    return meaning_of(file)


@pytest.mark.parametrize("what", SAME)
def test_what_changes_nothing(what: str, tmp_path: Path) -> None:
    assert SAME[what][0] in CODE
    assert fingerprint(CODE.replace(*SAME[what], 1), tmp_path) == fingerprint(CODE, tmp_path)


def test_what_changes_something(tmp_path: Path) -> None:
    changed = [CODE, *(CODE.replace(*pair, 1) for pair in OTHER.values())]
    assert len({fingerprint(text, tmp_path) for text in changed}) == len(changed)


def test_fields_that_only_some_versions_of_python_have_do_not_count(tmp_path: Path, monkeypatch) -> None:
    """As in 3.12, where functions have parameters of types, and in 3.13, where empty lists are left out."""
    before = fingerprint(CODE, tmp_path)
    fields = ast.iter_fields

    def newer(node: ast.AST):
        yield from (pair for pair in fields(node) if pair[1] != [])
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield "type_params", []

    monkeypatch.setattr(module.ast, "iter_fields", newer)
    module._meaning_of_text.cache_clear()
    assert fingerprint(CODE, tmp_path) == before


def test_an_experiment_means_what_it_imports_but_the_plumbing_and_the_solvers(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("from reproduction.training.mnist import classifier_run\n")
    names = {file.relative_to(LIBRARY).as_posix() for file in experiment_modules(code) - {code}}
    assert {"reproduction/training/loop.py", "reproduction/models/mnist.py", "neural_ode/nn/ode_block.py"} <= names
    assert not [name for name in names if name.startswith("neural_ode/") and "/nn/" not in name]
    assert not names & set(module.PLUMBING)
    assert LIBRARY / "neural_ode" / "solve.py" in imported_modules(code)


@pytest.fixture
def a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`reproduction.bag` passes on `one` and `two`, and has a module `three`."""
    monkeypatch.setattr(module, "LIBRARY", tmp_path)
    bag = tmp_path / "reproduction" / "bag"
    bag.mkdir(parents=True)
    (tmp_path / "reproduction" / "__init__.py").write_text('"""Makes figures."""\n')
    front = "from reproduction.bag.first import one\nfrom reproduction.bag.second import two\n"
    (bag / "__init__.py").write_text(f'"""A bag."""\n{front}\n__all__ = ["one", "two"]\n')
    for name in ("first", "second", "three"):
        (bag / f"{name}.py").write_text("one = two = 1\n")
    return bag


IMPORTS = {
    "from reproduction.bag import one": {"first"},
    "from reproduction.bag import two": {"second"},
    "from reproduction.bag import one, two": {"first", "second"},
    "from reproduction.bag import three": {"three"},
    "from reproduction.bag.three import one": {"three"},
    "import reproduction.bag.three": {"three"},
    "from reproduction.bag import unknown": {"__init__", "first", "second"},
    "from reproduction.bag import *": {"__init__", "first", "second"},
    "import reproduction.bag": {"__init__", "first", "second"},
    "from reproduction import bag": {"__init__", "first", "second"},
}


@pytest.mark.parametrize("line", IMPORTS)
def test_of_a_package_that_passes_names_on_those_count_that_are_imported(line: str, a_package: Path) -> None:
    code = a_package.parents[1] / "code.py"
    code.write_text(f"{line}\n")
    assert {file.stem for file in imported_modules(code)} == IMPORTS[line]


def test_a_further_name_in_a_package_changes_nothing(a_package: Path) -> None:
    code, front = a_package.parents[1] / "code.py", a_package / "__init__.py"
    code.write_text("from reproduction.bag import one\n")
    before = meaning(code)
    front.write_text(front.read_text().replace("import one", "import one, three"))
    assert meaning(code) == before
    (a_package / "first.py").write_text("one = 2\n")
    assert meaning(code) != before


@pytest.mark.parametrize(
    "line",
    [
        "x = 1",
        "print()",
        "import os",
        "from reproduction.bag.three import *",
        "from reproduction.bag.three import x as y",
    ],
)
def test_a_package_that_does_more_than_pass_names_on_counts_whole(line: str, a_package: Path) -> None:
    code, front = a_package.parents[1] / "code.py", a_package / "__init__.py"
    front.write_text(f"{front.read_text()}{line}\n")
    for text in ("from reproduction.bag import one\n", "from reproduction.bag.first import one\n"):
        code.write_text(text)
        assert {"__init__", "first", "second"} <= {file.stem for file in imported_modules(code)}


def test_the_plumbing_is_there() -> None:
    assert all((LIBRARY / name).exists() for name in module.PLUMBING)


def test_an_edit_of_an_imported_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, helper = tmp_path / "code.py", tmp_path / "helper.py"
    code.write_text("x = 1\n")
    monkeypatch.setattr(module, "imported_modules", lambda path: {helper})
    found = []
    for text in ("y = 1\n", "y = 1  # one\n", "y = 2\n"):
        helper.write_text(text)
        found.append(meaning(code))
    assert found[0] == found[1] != found[2]


def test_behaviour_is_the_content_of_the_golden_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, text = behaviour(), module.NUMERICS.read_text()
    file = tmp_path / "numerics.json"
    monkeypatch.setattr(module, "NUMERICS", file)
    file.write_text(text.replace("\n", "\n\n"))
    assert behaviour() == before
    file.write_text(text.replace("1", "2", 1))
    assert behaviour() != before


@pytest.mark.parametrize("content", [b"def f(:\n", b"\xff\xfe", None])
def test_what_is_no_python_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    if content is not None:
        file.write_bytes(content)
    for ask in (meaning_of, meaning, imported_modules):
        with pytest.raises(SourceError, match=r"code\.py (is|cannot) .*: restore it"):
            ask(file)


# What the stages depend on ---------------------------------------------------------------------------------------


def test_every_notebook_but_the_scoreboard_has_an_experiment() -> None:
    for path in NOTEBOOKS:
        assert (experiment_file(path.stem) is None) == (path.stem == "11_scoreboard"), path


def test_what_a_notebook_shows_is_found() -> None:
    """Else an executed notebook could show source that no longer exists."""
    for path in NOTEBOOKS:
        calls = sum(cell.count("show_source(") for cell in module.code_cells(path))
        assert len([text for text in shown_source(path) if text.startswith(("def ", "class "))]) >= calls, path


def test_an_experiment_does_not_depend_on_another() -> None:
    """What all trainings share knows no model and no data: a change of the classifiers trains no spirals."""
    training = LIBRARY / "reproduction" / "training"
    shared = {file for name in ("adam", "weights", "loop") for file in imported_modules(training / f"{name}.py")}
    assert not [file for file in shared if file.parts[-2] in ("models", "data", "experiments")]
    experiments = LIBRARY / "reproduction" / "experiments"
    assert not [file for file in imported_modules(experiments / "spirals.py") if file.stem == "mnist"]


def test_trainings_depend_on_no_measurement_of_a_notebook() -> None:
    """An edit of what is measured must not train anything again."""
    for file in (LIBRARY / "reproduction" / "training").glob("*.py"):
        assert not [x for x in imported_modules(file) if x.parent.name in ("experiments", "figures")], file


def test_the_files_are_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "identity"
    assert identity.main([str(folder)]) == 0
    (folder / "12_gone.ipynb").touch()
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "12_gone.ipynb"}
    assert identity.main([str(folder)]) == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert {name for name in before if name.endswith(".ipynb")} == {path.name for path in NOTEBOOKS}
    broken = tmp_path / "07_toy.ipynb"
    broken.write_text("plain text")
    assert identity.main([str(folder), str(broken)]) == 1
    assert "07_toy.ipynb is not a notebook" in capsys.readouterr().err
