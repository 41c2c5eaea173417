"""Compare AdamW, dense and behind the hook, with what the hook makes of it, at equal tuning and on equal examples.

    OMP_NUM_THREADS=1 python benchmarks/adamw.py configs/studies/adamw/*.yaml --data DIR [--budget-minutes 60]
    python benchmarks/adamw.py --table

Ranks are processes on this machine with one thread each, over gloo. DIR is where the data sets lie (MNIST,
cifar10_jpeg, shakespeare). A run that is in the file of results is not repeated, whichever machine it was made on, and
a kill at any time loses only the run in progress: the same command continues.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from statistics import mean
from typing import TypeVar

from adamw_plan import Plan, read_grid
from adamw_ranks import rank_processes, start
from adamw_rows import Row, Run, Setting
from adamw_table import print_tables
from adamw_tasks import prepare
from csv_rows import append_row, read_rows

R = TypeVar("R")  # a row of a study

RESULTS = Path(__file__).parent.parent / "docs" / "adamw.csv"
USUAL_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("grids", type=Path, nargs="*", help="YAML files of settings, the most important ones first")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", metavar="TASK", help="these tasks alone")
    parser.add_argument("--budget-minutes", type=float, default=600.0, help="start no run after so many")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each of which has all its ranks")
    parser.add_argument("--table", action="store_true", help="print what is in the file instead")
    options = parser.parse_args()
    if options.table:
        print_tables(read_rows(options.results, Row), options.only)
        return
    plans = [plan for grid in options.grids for plan in read_grid(grid)]
    plans = [plan for plan in plans if not options.only or plan.setting.task in options.only]
    if not plans:
        parser.error("no settings; name a grid that has some, and tasks of it")
    try:
        study(plans, options)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues")


def study(plans: Sequence[Plan], options: argparse.Namespace) -> None:
    """Train what is missing in the order of the plans, several runs at a time if that is asked for."""
    data = options.data.resolve()
    end = time.monotonic() + 60 * options.budget_minutes
    rows = read_rows(options.results, Row)
    running: dict[Run, list[Future[Row]]] = {}
    refused: set[Setting] = set()
    most = options.jobs * max(plan.setting.ranks for plan in plans)
    stores = itertools.count()
    with tempfile.TemporaryDirectory() as directory, rank_processes(most) as pool:
        while True:
            while len(running) < options.jobs and time.monotonic() < end:
                run = next_run(plans, rows, running.keys(), refused)
                if run is None:
                    break
                prepare(run.setting.task, data)
                running[run] = start(pool, run, data, Path(directory) / f"store{next(stores)}")
            if not running:
                break
            wait([future for futures in running.values() for future in futures], return_when=FIRST_COMPLETED)
            for run in [run for run, futures in running.items() if any(future.done() for future in futures)]:
                row = outcome(run.setting, running.pop(run))
                if row is None:
                    refused.add(run.setting)
                    continue
                append_row(options.results, row)
                rows.append(row)
                say(f"{describe(row)}; {left(plans, rows, refused)}")


def next_run(
    plans: Iterable[Plan], rows: Sequence[Row], running: Collection[Run], refused: Collection[Setting]
) -> Run | None:
    """Find the most important run that is neither done nor running."""
    for plan in plans:
        if plan.setting not in refused:
            for run in plan.missing(rows):
                if run not in running:
                    return run
    return None


def outcome(setting: object, futures: Sequence[Future[R]]) -> R | None:
    """Wait for the ranks of a run, and return the first one's row; None if its setting is refused and stays missing."""
    try:
        first, *_ = [future.result() for future in futures]
        return first
    except ValueError as error:
        say(f"missing: {setting}: {error}")
        return None


def describe(row: Row) -> str:
    """Write a run and its loss on one line."""
    setting, run = row.run.setting, row.run
    what = f"{setting.task}, {setting.ranks} ranks: {setting.way} {setting.density:g} {setting.value_codec}"
    betas = f"betas {setting.beta1:g} {setting.beta2:g}"
    words = [what, betas, setting.settings, f"lr {run.lr:g} seed {run.seed}: loss {row.loss:.4f}, {row.seconds:.0f} s"]
    return ", ".join(filter(None, words))


def left(plans: Iterable[Plan], rows: Sequence[Row], refused: Collection[Setting] = ()) -> str:
    """Estimate runs and time that are left, by the mean time of a task's runs with as many ranks."""
    runs = 0
    seconds = 0.0
    for plan in plans:
        if plan.setting in refused:
            continue
        own = plan.setting
        alike = [row for row in rows if row.run.setting.task == own.task and row.run.setting.ranks == own.ranks]
        runs += plan.left(rows)
        seconds += plan.left(rows) * (mean(row.seconds for row in alike) if alike else USUAL_SECONDS)
    return f"about {runs} runs and {seconds / 3600:.1f} h left"


def say(line: str) -> None:
    """Print progress to stderr."""
    print(time.strftime("%H:%M"), line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
