"""Measure ways side by side in one alternating sequence, and compare them by medians of the ratios of neighbours."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import torch

Seconds = Mapping[str, Sequence[float]]  # of each way, one for each turn


def alternate(
    ways: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 1, warm_caches: bool = False
) -> dict[str, list[float]]:
    """Measure the seconds of each way in each turn; in a turn all ways run once, one after another.

    Warm-up turns do not count. With `warm_caches` each way runs once more before it is timed, so that it finds the
    caches as it leaves them itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-warm_up, turns):
        for name, run in ways.items():
            if warm_caches:
                run()
            _wait_for_gpu()
            start = time.perf_counter()
            run()
            _wait_for_gpu()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
        if sys.stderr.isatty():
            print(f"\rturn {turn + 1} of {turns}", end="" if turn + 1 < turns else "\n", file=sys.stderr)
    return seconds


def ratio(seconds: Seconds, one: str, other: str) -> float:
    """Compute how many times as long one way takes as the other: the median over turns, in which noise hits both."""
    return median(a / b for a, b in zip(seconds[one], seconds[other]))


def milliseconds(seconds: Seconds, name: str) -> float:
    """Compute the median milliseconds of one way."""
    return 1000 * median(seconds[name])


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table, numbers to the right."""
    print("| " + " | ".join(header) + " |")
    print("|" + "|".join("---" if number == 0 else "--:" for number in range(len(header))) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()


def machine() -> str:
    """Describe the machine on which the numbers were measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{device}, torch {torch.__version__.split('+')[0]}, {torch.get_num_threads()} thread(s) a process"


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
