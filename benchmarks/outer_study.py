"""Compare DDP, DiLoCo, SparseLoCo, MuLoCo and the hook on a GPT, at equal tokens and tuned alike.

    OMP_NUM_THREADS=1 python benchmarks/outer_study.py configs/studies/outer/*.yaml --data DIR [--budget-hours 10]
    python benchmarks/outer_study.py configs/studies/outer/*.yaml --page

Replicas are processes on this machine with one thread each, over gloo. DIR is where shakespeare/roles.jsonl lies. A run
that is in the file of results is not repeated, whichever machine it was made on, and a kill at any time loses only the
run in progress: the same command continues. --page writes what the file holds into docs/results/outer.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adamw import outcome, say
from adamw_ranks import rank_processes
from csv_rows import append_row, read_rows
from outer_study_page import write_page
from outer_study_plan import Plan, next_run, read_grid
from outer_study_ranks import start
from outer_study_rows import Row, Setting

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "outer.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("grids", type=Path, nargs="+", help="YAML files; each is finished before the next begins")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--budget-hours", type=float, default=10.0, help="of all runs in the file")
    parser.add_argument("--page", action="store_true", help="write docs/results/outer.md from the file instead")
    options = parser.parse_args()
    grids = [read_grid(grid) for grid in options.grids]
    if options.page:
        write_page(DOCS, read_rows(options.results, Row), [plan for plans in grids for plan in plans])
        return
    try:
        study(grids, options)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues")


def study(grids: Sequence[Sequence[Plan]], options: argparse.Namespace) -> None:
    """Train what is missing, one run at a time."""
    rows = read_rows(options.results, Row)
    refused: set[Setting] = set()
    most = max(plan.setting.replicas for plans in grids for plan in plans)
    with tempfile.TemporaryDirectory() as directory, rank_processes(most) as pool:
        for number in itertools.count():
            run = next((run for plans in grids if (run := next_run(plans, rows, refused))), None)
            if run is None or sum(row.seconds for row in rows) > 3600 * options.budget_hours:
                break
            row = outcome(run.setting, start(pool, run, options.data.resolve(), Path(directory) / f"store{number}"))
            if row is None:
                refused.add(run.setting)
                continue
            append_row(options.results, row)
            rows.append(row)
            say(describe(row))


def describe(row: Row) -> str:
    """Write a run and its losses on one line."""
    run, setting = row.run, row.run.setting
    what = " ".join([setting.method, f"every {setting.every}", f"width {setting.width}", *setting.settings.split()])
    rates = f"lr {run.lr:g} outer {run.outer_lr:g} seed {run.seed}"
    losses = f"validation {row.validation_loss:.4f} test {row.test_loss:.4f}"
    return f"{what}, {rates}: {losses}, {row.wire_bytes / 1e6:.1f} MB, {row.seconds:.0f} s"


if __name__ == "__main__":
    main()
