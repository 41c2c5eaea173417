"""Ranks for tests: forkserver with torch preloaded (plain fork hangs once OpenMP was used), gloo, a file store."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as TimedOut
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from flare_dist.comm.group import open_world
from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World

TIMEOUT_SECONDS = 60.0
SECONDS_TO_END = 60.0  # for ranks that have returned
SHOWING_ITS_STACK = signal.SIGABRT  # by faulthandler


def run_ranks(
    function: Callable[..., Any], size: int, *arguments: Any, seconds: float = TIMEOUT_SECONDS, shards: int = 1
) -> list[Any]:
    """The results of `function(world, *arguments)` on `size` ranks of one thread each, `shards` to a host, by rank.

    `function` must be a module-level function; what it raises on any rank is raised here.
    """
    with tempfile.TemporaryDirectory() as directory:
        store = (Path(directory) / "store").as_uri()
        with rank_processes(size) as pool:
            common = (size, store, arguments, seconds, shards)
            futures = [pool.submit(_rank, function, rank, *common) for rank in range(size)]
            return results_of(pool, futures, seconds)


@contextmanager
def rank_processes(size: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start quickly, with everything heavy imported; one that does not end shows where it is."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    with tempfile.NamedTemporaryFile("r") as stacks:
        pool = ProcessPoolExecutor(size, mp_context=context, initializer=_show_stack_in, initargs=(stacks.name,))
        try:
            yield pool
        finally:
            if not _ended(pool):
                said = f"ranks stayed {SECONDS_TO_END:g} s after they returned:\n{stacks.read()}"
                warnings.warn(said, RuntimeWarning, stacklevel=3)


def _show_stack_in(path: str) -> None:
    """Write all stacks of this rank there when it aborts."""
    faulthandler.enable(Path(path).open("a"))  # noqa: SIM115 (open as long as the process lives)


def _ended(pool: ProcessPoolExecutor) -> bool:
    """Wait for the end of the processes, and abort those that stay; whether none did."""
    processes = list((pool._processes or {}).values())
    watching: Any = pool._executor_manager_thread  # (a thread, which typeshed takes for something else)
    pool.shutdown(wait=False)
    if watching is None:
        return True
    watching.join(SECONDS_TO_END)
    stayed = watching.is_alive()
    if stayed:
        server: Any = forkserver._forkserver
        os.kill(server._forkserver_pid, signal.SIGCHLD)  # should it have missed one
        _end(processes, SHOWING_ITS_STACK)
        watching.join(SECONDS_TO_END)
    return not stayed


def results_of(pool: ProcessPoolExecutor, futures: list[Future[Any]], seconds: float) -> list[Any]:
    """What the ranks return; where one fails the others are ended, for they may be waiting for it."""
    try:
        return [future.result(timeout=seconds) for future in futures]
    except BaseException as error:
        _end(pool._processes.values(), SHOWING_ITS_STACK if isinstance(error, TimedOut) else signal.SIGKILL)
        raise


def _end(processes: Iterable[BaseProcess], how: signal.Signals) -> None:
    for process in list(processes):
        with suppress(ProcessLookupError):
            assert process.pid is not None
            os.kill(process.pid, how)


def _rank(
    function: Callable[..., Any],
    rank: int,
    size: int,
    store: str,
    arguments: tuple[Any, ...],
    seconds: float,
    shards: int,
) -> Any:
    torch.set_num_threads(1)
    launch, longest = Launch(rank, size, rank, size), seconds / 2
    with (
        warnings.catch_warnings(),
        open_world(launch, torch.device("cpu"), longest, store, collective_seconds=longest, shards=shards) as world,
    ):
        warnings.simplefilter("error")  # as pytest does in its own process
        return function(world, *arguments)


def single(function: Callable[..., Any], *arguments: Any) -> Any:
    """The same function without a process group."""
    return function(World(), *arguments)
