"""`python -m benchmarks`: measure, and write the results and the figures."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Parse the command line, limit the threads, measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed side by side with other libraries. Needs the extras 'peers' and 'notebooks' and a quiet "
        "machine. What is measured again replaces what was stored.",
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a case, a problem or an axis; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="small problems, few rounds: shows that it works")
    parser.add_argument("--threads", type=int, default=1, help="for every library; 1 by default")
    parser.add_argument("--output", type=Path, help="folder for the results; with --quick scratch/benchmarks")
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    _limit_threads(arguments.threads)

    # Only now: the libraries read the limits when they are imported.
    import torch

    from neural_ode.errors import needs

    with needs("peers"):
        import jax

    from benchmarks.cases import CASES, case_rows
    from benchmarks.problems import PROBLEMS
    from benchmarks.report import draw_precision, draw_scaling, load, machine, merge, save, save_png, update_readmes
    from benchmarks.scaling import AXES, scaling_rows
    from benchmarks.work_precision import precision_rows
    from reproduction.figures.theme import use_theme

    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(arguments.threads)
    known = [*CASES, *(f"precision-{name}" for name in PROBLEMS), *(f"scaling-{name}" for name in AXES)]
    chosen = arguments.only or known
    unknown = set(chosen) - set(known)
    if unknown:
        parser.error(f"--only knows {', '.join(known)}; got {', '.join(sorted(unknown))}")
    output = arguments.output or (_FOLDER.parent / "scratch" / "benchmarks" if arguments.quick else _FOLDER)
    path = output / "results.json"

    stored = load(path) if path.exists() else None
    for name in chosen:
        start = time.perf_counter()
        results: dict[str, Any] = {"machine": machine(), "quick": arguments.quick}
        results |= {"rows": [], "goals": [], "work_precision": [], "scaling": []}
        kind, _, subject = name.partition("-")
        if name in CASES:
            results["rows"], results["goals"] = case_rows(name, arguments.threads, arguments.quick)
        elif kind == "scaling":
            results["scaling"] = scaling_rows(subject, arguments.threads, arguments.quick)
        else:
            results["work_precision"] = precision_rows(subject, arguments.threads, arguments.quick)
        stored = merge(stored, results)
        save(path, stored)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    stored = load(path)
    for goal in stored["goals"]:
        measured = f"{goal['measured'][0]:.3g}" if "measured" in goal else "–"
        print(f"{goal['verdict']:12} {goal['case']:20} {goal['goal']}: {measured}, {goal['threads']} thread(s)")
    if stored["work_precision"]:
        use_theme()
        threads = min(row["threads"] for row in stored["work_precision"])
        save_png(draw_precision(stored, threads), output / "results.png")
    if stored["scaling"]:
        use_theme()
        threads = min(row["threads"] for row in stored["scaling"])
        save_png(draw_scaling(stored, threads), output / "scaling.png")
    if output == _FOLDER:
        update_readmes(_FOLDER.parent, stored)


def _limit_threads(threads: int) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        # What XLA goes by.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    main()
