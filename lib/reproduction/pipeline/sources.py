"""Write copies of notebooks without anything that running them changes.

The stages of the pipeline depend on these copies, so a notebook that was merely run in JupyterLab does not count
as changed. Standard library only, and run as a file, because it runs at every `dvc repro`:

    python lib/reproduction/pipeline/sources.py .nbsrc notebooks/*.ipynb
"""

import json
import sys
from pathlib import Path
from typing import Any


def source_only(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without outputs, execution counts, and metadata other than cell tags and the kernel."""
    cells = []
    for cell in notebook["cells"]:
        kept = {key: cell[key] for key in ("cell_type", "id")}
        # A list of lines and one string mean the same, and both are written.
        kept["source"] = "".join(cell["source"]).splitlines(keepends=True)
        kept["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": []}
        cells.append(kept)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": notebook["nbformat"],
        "nbformat_minor": notebook["nbformat_minor"],
    }


def main(arguments: list[str]) -> int:
    folder, *notebooks = (Path(argument) for argument in arguments)
    folder.mkdir(parents=True, exist_ok=True)
    for path in notebooks:
        try:
            source = source_only(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            print(f"{path} cannot be read: {error.strerror}", file=sys.stderr)
            return 1
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"{path} is not a notebook of format 4.5 or later: {error!r}", file=sys.stderr)
            return 1
        text = json.dumps(source, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        temporary = folder / f".{path.name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
