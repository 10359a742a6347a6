"""Freeze the rules of the claims: write down what they are, if every change since the last time is explained.

python -m reproduction.pipeline.freeze
"""

import json
import sys
from pathlib import Path

from reproduction.claims import freeze, load_claims
from reproduction.files import read_json, write_atomically
from reproduction.pipeline.command import exit_status

__all__ = ["RECORD", "frozen", "main"]

RECORD = Path(__file__).parents[1] / "rules.json"
"""The digests of the rules, and of what was amended."""


def frozen() -> dict[str, object]:
    """The record as it is.

    Raises:
        FileError: it is missing or damaged.
    """
    return read_json(RECORD, "restore it with `git checkout`")


def main() -> int:
    """Write the record anew; the exit status."""

    def work() -> None:
        record = freeze(load_claims(), frozen())
        write_atomically(RECORD, json.dumps(record, indent=1) + "\n")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
