"""Measure what many clients cost: registered ones, cohorts of 10 to 1,000, and memory of more than fit into it.

    python benchmarks/scale.py [--registered 100000] [--turns 3]
    python benchmarks/scale.py --files [--clients 1000] [--cohort 16] [--limit_gib 8]

Runs of two ranks through torchrun on made-up data; tables go to stdout, progress to stderr. With --files the clients
remember 11 M weights each in files, and a cgroup limits the memory of all processes together (needs root, and 1.1 times
the clients' memory in free disk). A round of all clients comes first; two runs of smaller cohorts continue from it. One
of them is killed with kill -9 in the middle of a round and continued, and both must end with the same bits.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from scale_files import in_files
from scale_runs import check, launch, rows, say
from timing import machine, print_table

COHORTS = {10: 30, 100: 10, 1000: 4}  # clients of a round: rounds, of which the first does not count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--registered", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--files", action="store_true", help="instead: memory in files, under a limit")
    parser.add_argument("--clients", type=int, default=1000, help="of --files")
    parser.add_argument("--cohort", type=int, default=16, help="of the rounds of --files after the first")
    parser.add_argument("--limit_gib", type=float, default=8.0, help="memory of all processes of --files together")
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="in which a temporary directory is made")
    options = parser.parse_args()

    torch.set_num_threads(1)
    print(f"{machine()}, 2 ranks on {os.cpu_count()} cores\n")
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.dir) as directory:
        if options.files:
            in_files(Path(directory), options.clients, options.cohort, options.limit_gib)
        else:
            registered(Path(directory), options.registered, options.turns)
            per_round(Path(directory), options.registered, options.turns)


def registered(directory: Path, most: int, turns: int) -> None:
    """Measure start-up and memory of runs that differ in the registered clients, not in those that take part."""
    counts = (1000, most)
    measured: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for turn, count in itertools.product(range(turns), counts):
        say(f"start-up with {count} clients, turn {turn + 1} of {turns}")
        process = launch(directory / "run", [*small(most), f"--clients.num={count}", "--rounds=1"])
        start = time.time()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        check(process, directory)
        measured[count].append((rows(directory / "run")[0]["time"] - start, usage.ru_maxrss / 1024))
        shutil.rmtree(directory / "run")
    table = [
        (f"{count:,}", f"{median(s for s, _ in own):.1f}", f"{min(own)[0]:.1f}", f"{median(m for _, m in own):.0f}")
        for count, own in measured.items()
    ]
    header = ("registered clients", "start-up, s (median)", "(least)", "largest process, MiB")
    print(f"1,000 clients of {most:,} examples take part in one round; start-up is from the launch to its beginning.\n")
    print_table(header, table)


def per_round(directory: Path, num: int, turns: int) -> None:
    """Measure the seconds for each client at cohorts of different sizes."""
    measured: dict[int, list[float]] = {cohort: [] for cohort in COHORTS}
    for turn, (cohort, rounds) in itertools.product(range(turns), COHORTS.items()):
        say(f"rounds of {cohort} clients, turn {turn + 1} of {turns}")
        run = [*small(num), f"--clients.num={num}", f"--clients.per_round={cohort}", f"--rounds={rounds}"]
        process = launch(directory / "run", run)
        process.wait()
        check(process, directory)
        measured[cohort].append(median(row["round_seconds"] / cohort for row in rows(directory / "run")[2:]))
        shutil.rmtree(directory / "run")
    first = measured[min(COHORTS)]
    table = [
        (f"{cohort:,}", f"{1000 * median(own):.2f}", f"{median(a / b for a, b in zip(own, first)):.2f}")
        for cohort, own in measured.items()
    ]
    print(f"Rounds of some of {num:,} clients, one local step of one example each:\n")
    print_table(("clients a round", "ms a client", f"against {min(COHORTS)} a round"), table)


def small(examples: int) -> list[str]:
    """Write the arguments of a model of 55,210 weights on images of 8x8."""
    data = f"--data.synthetic={{examples: {examples}, test_examples: 100, shape: [1, 8, 8]}}"
    clients = ["--clients.per_round=1000", "--clients.local_steps=1", "--clients.batch_size=1"]
    return [data, "--model.name=2nn", *clients, "--checkpoint.every=1000", "--eval_every=1000"]


if __name__ == "__main__":
    main()
