"""CPU time of small pieces of work on a machine that has others, too."""

import time
from collections.abc import Callable

__all__ = ["shortest_seconds"]


def shortest_seconds(work: Callable[[], object], repeats: int) -> float:
    """The shortest CPU time of so many calls, after one that does not count: noise makes all of them longer."""
    work()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)
