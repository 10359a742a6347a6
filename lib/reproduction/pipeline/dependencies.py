"""The modules of the library that a notebook depends on.

The stages of `dvc.yaml` list these files, so that changing a module re-runs what uses it and nothing else:

    python -m reproduction.pipeline.dependencies notebooks/*.ipynb
"""

import argparse
from pathlib import Path

from reproduction.imports import LIBRARY, imported_modules

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m reproduction.pipeline.dependencies")
    parser.add_argument("notebook", type=Path, nargs="+", help="list the modules that it imports, directly or not")
    for notebook in parser.parse_args().notebook:
        print(notebook)
        for module in sorted(imported_modules(notebook)):
            print(f"      - {module.relative_to(LIBRARY.parent)}")
