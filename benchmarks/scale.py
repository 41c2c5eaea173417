"""What many clients cost: registered ones, cohorts of 10 to 1,000, and memory of more clients than fit into it.

    python benchmarks/scale.py [--registered 100000] [--turns 3]
    python benchmarks/scale.py --spill [--clients 1000] [--cohort 16] [--limit_gib 8]

Runs of two ranks through torchrun on made-up data; tables go to stdout, progress to stderr. With --spill the clients
remember 11 M weights each in files, and the whole job has so much memory in a cgroup (needs root, and 1.1 times the
clients' memory in free disk): a round of all clients; from it two runs of smaller cohorts, of which one is killed with
kill -9 in the middle of a round and continued, and which must end with the same bits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import machine, print_table
from torch import nn

ROOT = Path(__file__).parent.parent
PATHS = f"{ROOT}{os.pathsep}{ROOT}/benchmarks"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": PATHS}
COHORTS = {10: 30, 100: 10, 1000: 4}  # clients of a round: rounds, of which the first does not count
PHASES = 4  # rounds of a run with --spill: everybody, then smaller cohorts
GIB = 2**30


def wide(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """11.0 M weights that take next to no time: one square layer, on images of a few pixels."""
    width = 3308
    first = nn.Linear(math.prod(input_shape), width)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--registered", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--spill", action="store_true", help="memory in files under a memory limit, instead")
    parser.add_argument("--clients", type=int, default=1000, help="of --spill")
    parser.add_argument("--cohort", type=int, default=16, help="of the rounds of --spill after the first")
    parser.add_argument("--limit_gib", type=float, default=8.0, help="memory of all processes of --spill together")
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="where a temporary directory is made")
    options = parser.parse_args()

    torch.set_num_threads(1)
    print(f"{machine()}, 2 ranks on {os.cpu_count()} cores\n")
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.dir) as directory:
        if options.spill:
            spill(Path(directory), options.clients, options.cohort, options.limit_gib)
        else:
            registered(Path(directory), options.registered, options.turns)
            per_round(Path(directory), options.registered, options.turns)


def registered(directory: Path, most: int, turns: int) -> None:
    """Start-up and memory of runs that differ in the clients that are registered, not in those that take part."""
    counts = (1000, most)
    measured: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for turn, count in itertools.product(range(turns), counts):
        say(f"start-up with {count} clients, turn {turn + 1} of {turns}")
        process, start = launch(directory / "run", [*small(most), f"--clients.num={count}", "--rounds=1"]), time.time()
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
    """Seconds for each client, at cohorts of different sizes."""
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
    """A model of 55,210 weights on images of 8x8."""
    data = f"--data.synthetic={{examples: {examples}, test_examples: 100, shape: [1, 8, 8]}}"
    clients = ["--clients.per_round=1000", "--clients.local_steps=1", "--clients.batch_size=1"]
    return [data, "--model.name=2nn", *clients, "--checkpoint.every=1000", "--eval_every=1000"]


def spill(directory: Path, clients: int, cohort: int, limit_gib: float) -> None:
    """A round of all clients, then smaller ones, straight on and killed, within a limit of memory."""
    data = f"--data.synthetic={{examples: {4 * clients}, test_examples: 10, shape: [1, 4, 4]}}"
    common = [data, "--model.name=scale:wide", f"--clients.num={clients}", "--compression.density=0.001"]
    common += ["--clients.local_steps=1", "--clients.batch_size=4", "--checkpoint.every=1", "--eval_every=1000"]

    def arguments(name: str, rounds: int, per_round: int) -> list[str]:
        changed = [f"--clients.state_dir={directory / name}-states", f"--rounds={rounds}"]
        return [*common, *changed, f"--clients.per_round={per_round}"]

    table: list[tuple[str, ...]] = []
    everybody, run = directory / "everybody", arguments("everybody", 1, clients)
    follow = f"--checkpoint.resume={everybody}"
    with cgroup(limit_gib) as group:
        table.append(watched(f"a round of {clients:,} clients", group, directory, launch(everybody, run, group)))
        straight = [*arguments("straight", PHASES, cohort), follow]
        name = f"{PHASES - 1} rounds of {cohort}, from there"
        table.append(watched(name, group, directory, launch(directory / "straight", straight, group)))
        killed = [*arguments("killed", PHASES, cohort), follow]
        process = launch(directory / "killed", killed, group)
        until_amid(directory / "killed", PHASES - 1, cohort, process)
        group.kill()
        process.wait()
        done = rows(directory / "killed")[-1]["round"]
        name = f"the same, killed in round {done + 1}, continued"
        table.append(watched(name, group, directory, launch(directory / "killed", killed, group)))
    print(f"{clients:,} clients remember {weights():,} weights each, all processes within {limit_gib:g} GiB:\n")
    header = ("", "seconds", "peak of the cgroup, GiB", "of which not files, GiB", "on the disk, GB")
    print_table(header, table)
    same = result(directory, "straight") == result(directory, "killed")
    print(f"Killed and continued equals straight, model and {clients:,} memories: {'bitwise' if same else 'NO'}")
    if not same:
        sys.exit(1)


def weights() -> int:
    return sum(parameter.numel() for parameter in wide((1, 4, 4), 10).parameters())


def until_amid(run: Path, round_: int, cohort: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until half of the clients of a round after the checkpoint before it have begun to change their memory."""
    states = Path(f"{run}-states")
    while not (run / "checkpoints" / f"round-{round_ - 1:08d}" / "manifest.json").exists():
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    written = (run / "checkpoints" / f"round-{round_ - 1:08d}" / "manifest.json").stat().st_mtime
    while sum(path.stat().st_mtime > written for path in states.glob("*/*.bin") if path.exists()) < cohort / 2:
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)


def result(directory: Path, name: str) -> tuple[bytes, dict[int, int]]:
    """The bytes of the model of a run, and the checksum of what each client remembers."""
    last = max((directory / name / "checkpoints").iterdir())
    saved = [torch.load(path, mmap=True)["slots"]["versions"] for path in sorted(last.glob("rank-*.pt"))]
    checksums = {client: checksum for own in saved for client, (_, checksum) in own.items()}
    return (directory / name / "model.safetensors").read_bytes(), dict(sorted(checksums.items()))


class Cgroup:
    """A memory cgroup of version 1 or 2."""

    def __init__(self, folder: Path, is_v2: bool) -> None:
        self.folder = folder
        self.names = ("memory.max", "memory.peak") if is_v2 else ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        self.anonymous = "anon" if is_v2 else "total_rss"

    def limit(self, nbytes: int) -> None:
        (self.folder / self.names[0]).write_text(str(nbytes))

    def peak(self) -> int:
        return int((self.folder / self.names[1]).read_text())

    def held(self) -> int:
        """Bytes that are not files' and cannot be dropped."""
        stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return int(stat[self.anonymous])

    def kill(self) -> None:
        """kill -9 for every process in it."""
        for pid in (self.folder / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def cgroup(limit_gib: float) -> Iterator[Cgroup]:
    """A new cgroup with a limit; ends the benchmark where there can be none."""
    base = Path("/sys/fs/cgroup")
    is_v2 = (base / "cgroup.controllers").exists()
    folder = (base if is_v2 else base / "memory") / f"flare-scale-{os.getpid()}"
    try:
        folder.mkdir()
        group = Cgroup(folder, is_v2)
        group.limit(int(limit_gib * GIB))
    except OSError as error:
        sys.exit(f"--spill needs a memory cgroup, which only root may make and not in every container: {error}")
    try:
        yield group
    finally:
        group.kill()
        while (folder / "cgroup.procs").read_text():
            time.sleep(0.1)
        folder.rmdir()


def watched(name: str, group: Cgroup, directory: Path, process: subprocess.Popen[bytes]) -> tuple[str, ...]:
    """Wait for a run; a row of what it took."""
    say(name)
    start, held = time.time(), 0
    while process.poll() is None:
        held = max(held, group.held())
        time.sleep(0.2)
    check(process, directory)
    seconds = time.time() - start
    blocks = {path.stat().st_ino: 512 * path.stat().st_blocks for path in directory.glob("*-states/*/*.bin")}
    sizes = (f"{group.peak() / GIB:.2f}", f"{held / GIB:.2f}", f"{sum(blocks.values()) / 1e9:.1f}")
    return (name, f"{seconds:.0f}", *sizes)


def launch(directory: Path, arguments: list[str], group: Cgroup | None = None) -> subprocess.Popen[bytes]:
    """A run of two ranks, silent, in a cgroup if one is given."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["flare_dist", "train", "--data.name=synthetic", f"--output_dir={directory}", *arguments]
    if group:
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group.folder), *command]
    log = directory.with_name("log.txt")
    with log.open("ab") as file:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file)


def check(process: subprocess.Popen[bytes], directory: Path) -> None:
    """End the benchmark where a run has failed."""
    if process.returncode:
        sys.exit(f"a run failed:\n{(directory / 'log.txt').read_text()[-3000:]}")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
