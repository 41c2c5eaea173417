"""Ranks for tests: forkserver with torch preloaded (plain fork hangs once OpenMP was used), gloo, a file store."""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World, open_world

TIMEOUT_SECONDS = 60.0


def run_ranks(function: Callable[..., Any], size: int, *arguments: Any, seconds: float = TIMEOUT_SECONDS) -> list[Any]:
    """The results of `function(world, *arguments)` on `size` ranks of one thread each, by rank.

    `function` must be a module-level function; what it raises on any rank is raised here.
    """
    with tempfile.TemporaryDirectory() as directory:
        store = (Path(directory) / "store").as_uri()
        with rank_processes(size) as pool:
            futures = [pool.submit(_rank, function, rank, size, store, arguments, seconds) for rank in range(size)]
            return results_of(pool, futures, seconds)


def rank_processes(size: int) -> ProcessPoolExecutor:
    """Processes that start quickly, with everything heavy imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    return ProcessPoolExecutor(size, mp_context=context)


def results_of(pool: ProcessPoolExecutor, futures: list[Future[Any]], seconds: float) -> list[Any]:
    """What the ranks return; where one fails the others are ended, for they may be waiting for it."""
    try:
        return [future.result(timeout=seconds) for future in futures]
    except BaseException:
        for process in list(pool._processes.values()):
            process.kill()
        raise


def _rank(
    function: Callable[..., Any], rank: int, size: int, store: str, arguments: tuple[Any, ...], seconds: float
) -> Any:
    torch.set_num_threads(1)
    launch, longest = Launch(rank, size, rank, size), seconds / 2
    with (
        warnings.catch_warnings(),
        open_world(launch, torch.device("cpu"), longest, store, collective_seconds=longest) as world,
    ):
        warnings.simplefilter("error")  # as pytest does in its own process
        return function(world, *arguments)


def single(function: Callable[..., Any], *arguments: Any) -> Any:
    """The same function without a process group."""
    return function(World(), *arguments)
