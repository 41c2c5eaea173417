"""Programs of Python in forks of a server that has imported everything: a tenth of a second each, instead of five.

`Forked` stands in for `subprocess.Popen` for commands that begin with this Python. The process has a session, streams,
an environment and an exit status of its own, and so have the ranks that it starts by torchrun, Accelerate's launcher or
DeepSpeed's. What it cannot show is that a fresh interpreter imports what it needs: tests/test_launch.py and
tests/test_launchers.py start those too.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

RANKS = "FLARE_DIST_TEST_RANKS"  # the file in which the ranks of a launch note their process ids
NAMESPACE = "FLARE_DIST_TEST_NAMESPACE"  # of the network in which a launch and its ranks are, made by `ip netns`
CLONE_NEWNET = 0x40000000
LAUNCHERS = ("torch.distributed.run", "deepspeed.launcher.launch")  # as `__main__` they would not be those of `_become`
SERVER = ("_forkserver_address", "_forkserver_authkey")  # the latter since Python 3.14


class Forked:
    """A running program, with what launchers and tests use of subprocess.Popen."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
    ) -> None:
        assert command[0] == sys.executable
        self.args = list(command)
        self._pipes = [_pipe() if stream == subprocess.PIPE else None for stream in (stdout, stderr)]
        for pipe in self._pipes:
            if pipe:
                weakref.finalize(self, pipe.unlink, missing_ok=True)
        streams = [_path_of(1, stdout, self._pipes[0]), _path_of(2, stderr, self._pipes[1])]
        if stderr == subprocess.STDOUT:
            streams[1] = streams[0]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.preload"])
        environment = dict(os.environ if env is None else env)
        forkserver._forkserver.ensure_running()
        server = {name: getattr(forkserver._forkserver, name, None) for name in SERVER}
        given = (self.args[1:], environment, os.getcwd(), streams, server)
        self._process = context.Process(target=_become, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        while self.poll() is None and not _leads(self.pid):
            time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def terminate(self) -> None:
        self._process.terminate()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait, and read what went into pipes."""
        self.wait(timeout)
        said = ["" if pipe is None else pipe.read_text() for pipe in self._pipes]
        return said[0], said[1]


def _pipe() -> Path:
    """Make the file that stands in for a pipe, in which nothing blocks."""
    descriptor, path = tempfile.mkstemp(prefix="flare_dist-")
    os.close(descriptor)
    return Path(path)


def _path_of(number: int, file: IO[Any] | int | None, pipe: Path | None) -> str:
    """Name a stream such that another process can open it while this one has it open."""
    descriptor = number if file is None or isinstance(file, int) else file.fileno()
    return str(pipe or f"/proc/{os.getpid()}/fd/{descriptor}")


def _leads(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _become(
    arguments: list[str], environment: dict[str, str], directory: str, streams: list[str], server: dict[str, Any]
) -> None:
    """Be the process that `python *arguments` would have been."""
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.setsid()
    if NAMESPACE in environment:
        with Path("/run/netns", environment[NAMESPACE]).open() as file:
            assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    if RANKS in environment and "RANK" in environment:
        with Path(environment[RANKS]).open("a") as file:
            file.write(f"{environment['RANK']} {os.getpid()}\n")
    vars(forkserver._forkserver).update(server, ensure_running=lambda: None)  # or an agent would start another server
    agent: Any = importlib.import_module("torch.distributed.elastic.multiprocessing.subprocess_handler")
    agent.SubprocessHandler._popen = _popen
    for name in ("runner", "launch"):
        launcher: Any = importlib.import_module(f"deepspeed.launcher.{name}")
        launcher.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": Forked})
    _run([argument for argument in arguments if argument != "-u"])
    atexit._run_exitfuncs()


def _popen(handler: Any, command: Sequence[str], environment: Mapping[str, str]) -> Forked:
    """Start a rank, in the place of SubprocessHandler._popen."""
    return Forked(command, environment, handler._stdout, handler._stderr)


def _run(arguments: list[str]) -> None:
    if arguments[0] == "-m" and arguments[1] in LAUNCHERS:
        sys.argv = arguments[1:]
        importlib.import_module(arguments[1]).main()
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def running_ranks(noted: Path) -> dict[int, int]:
    """Read the process ids, by rank, of the ranks that noted theirs and are running."""
    lines = noted.read_text().splitlines() if noted.exists() else []
    return {rank: pid for rank, pid in (map(int, line.split()) for line in lines) if running(pid)}


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
