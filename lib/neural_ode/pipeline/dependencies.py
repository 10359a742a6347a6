"""The modules of the library that a notebook depends on.

The stages of `dvc.yaml` list these files, so that changing a module re-runs what uses it and nothing else:

    python -m neural_ode.pipeline.dependencies notebooks/*.ipynb
"""

import sys
from pathlib import Path

from neural_ode.imports import LIBRARY, imported_modules

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument)
        for module in sorted(imported_modules(Path(argument))):
            print(f"      - {module.relative_to(LIBRARY.parents[1])}")
