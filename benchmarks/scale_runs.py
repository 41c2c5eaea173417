"""Start the runs of scale.py, if need be in a memory cgroup, and read what they logged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATHS = f"{ROOT}{os.pathsep}{ROOT}/benchmarks"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": PATHS}
GIB = 2**30


class Cgroup:
    """Limit and measure the memory of processes by a cgroup of version 1 or 2."""

    def __init__(self, folder: Path, is_v2: bool) -> None:
        self.folder = folder
        self.names = ("memory.max", "memory.peak") if is_v2 else ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        self.anonymous = "anon" if is_v2 else "total_rss"

    def limit(self, nbytes: int) -> None:
        """Limit the memory of all processes together."""
        (self.folder / self.names[0]).write_text(str(nbytes))

    def peak(self) -> int:
        """Give the most bytes that were in use so far."""
        return int((self.folder / self.names[1]).read_text())

    def held(self) -> int:
        """Count the bytes that belong to no file and cannot be dropped."""
        stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return int(stat[self.anonymous])

    def kill(self) -> None:
        """Kill every process in it with kill -9."""
        for pid in (self.folder / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def cgroup(limit_gib: float) -> Iterator[Cgroup]:
    """Make a cgroup with a limit; ends the benchmark if there can be none."""
    base = Path("/sys/fs/cgroup")
    is_v2 = (base / "cgroup.controllers").exists()
    folder = (base if is_v2 else base / "memory") / f"flare-scale-{os.getpid()}"
    try:
        folder.mkdir()
        group = Cgroup(folder, is_v2)
        group.limit(int(limit_gib * GIB))
    except OSError as error:
        sys.exit(f"--files needs a memory cgroup, which only root may make and not in every container: {error}")
    try:
        yield group
    finally:
        group.kill()
        while (folder / "cgroup.procs").read_text():
            time.sleep(0.1)
        folder.rmdir()


def launch(directory: Path, arguments: list[str], group: Cgroup | None = None) -> subprocess.Popen[bytes]:
    """Start a run of two ranks, silent, in a cgroup if one is given."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["flare_dist", "train", "--data.name=synthetic", f"--output_dir={directory}", *arguments]
    if group:
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group.folder), *command]
    log = directory.with_name("log.txt")
    with log.open("ab") as file:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file)


def check(process: subprocess.Popen[bytes], directory: Path) -> None:
    """End the benchmark if a run has failed."""
    if process.returncode:
        sys.exit(f"a run failed:\n{(directory / 'log.txt').read_text()[-3000:]}")


def rows(run: Path) -> list[dict[str, Any]]:
    """Read the rows of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def say(what: str) -> None:
    """Print progress to stderr."""
    print(what, file=sys.stderr, flush=True)
