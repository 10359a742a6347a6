"""What `make lab` does with notebooks when they are opened and saved, without a browser."""

import asyncio
import json
import platform
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

from reproduction.pipeline.lab import NotebookManager

ROOT = Path(__file__).parents[1]
STORED = ROOT / "notebooks" / "01_depth.ipynb"


@pytest.fixture
def manager(tmp_path: Path) -> NotebookManager:
    (tmp_path / STORED.name).write_bytes(STORED.read_bytes())
    return NotebookManager(root_dir=str(tmp_path))


def test_the_settings_name_the_manager() -> None:
    folder = ROOT / "lib" / "reproduction" / "pipeline" / "jupyter"
    settings = json.loads((folder / "jupyter_lab_config.json").read_text())
    module, _, name = settings["ServerApp"]["contents_manager_class"].rpartition(".")
    assert getattr(import_module(module), name) is NotebookManager
    assert folder.relative_to(ROOT).as_posix() in (ROOT / "Makefile").read_text()


def test_opened_and_saved_again_is_the_same_file(manager: NotebookManager, tmp_path: Path) -> None:
    model = asyncio.run(manager.get(STORED.name))
    assert model["content"].metadata.language_info.version == platform.python_version()
    assert model["content"].metadata.kernelspec.display_name != "Python 3"
    for cell in model["content"].cells:
        if cell.cell_type == "code":
            cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
    sent = {name: model[name] for name in ("type", "format", "content")}
    asyncio.run(manager.save(json.loads(json.dumps(sent)), STORED.name))
    assert (tmp_path / STORED.name).read_text() == STORED.read_text()


def test_what_a_reader_wrote_stays(manager: NotebookManager, tmp_path: Path) -> None:
    model = asyncio.run(manager.get(STORED.name))
    model["content"].metadata["title"] = "mine"
    model["content"].cells[0].metadata["collapsed"] = True
    model["content"].cells[0].source += "\nA note."
    asyncio.run(manager.save(model, STORED.name))
    found = nbformat.read(tmp_path / STORED.name, as_version=4)
    assert found.metadata.title == "mine"
    assert found.metadata.language_info == {"name": "python"}
    assert found.cells[0].metadata.collapsed
    assert found.cells[0].source.endswith("A note.")


def test_a_notebook_with_another_kernel_opens(manager: NotebookManager, tmp_path: Path) -> None:
    stored = nbformat.read(STORED, as_version=4)
    stored.metadata.kernelspec.name = "nowhere"
    nbformat.write(stored, tmp_path / "other.ipynb")
    assert asyncio.run(manager.get("other.ipynb"))["content"].metadata == stored.metadata


def test_a_damaged_picture_does_not_keep_a_notebook_from_being_saved(
    manager: NotebookManager, tmp_path: Path
) -> None:
    model = asyncio.run(manager.get(STORED.name))
    picture = nbformat.v4.new_output("display_data", {"image/png": "none"})
    model["content"].cells.append(nbformat.v4.new_code_cell("1", outputs=[picture]))
    asyncio.run(manager.save(model, STORED.name))
    assert nbformat.read(tmp_path / STORED.name, as_version=4).cells[-1].outputs == [picture]


def test_other_notebooks_are_stored_as_they_are(manager: NotebookManager, tmp_path: Path) -> None:
    own = nbformat.v4.new_notebook(metadata={"language_info": {"name": "julia", "version": "1"}})
    for _ in range(2):  # new, and once more
        model = {"type": "notebook", "format": "json", "content": own}
        asyncio.run(manager.save(model, "own.ipynb"))
        assert nbformat.read(tmp_path / "own.ipynb", as_version=4).metadata == own.metadata
    assert asyncio.run(manager.get("own.ipynb"))["content"].metadata == own.metadata
