"""Measure clients that remember 11 M weights each in files, within a limit of memory: `scale.py --files`."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from scale_runs import GIB, Cgroup, cgroup, check, launch, rows, say
from timing import print_table
from torch import nn

PHASES = 4  # rounds of a run: everybody, then smaller cohorts


def wide(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a model of 11.0 M weights that takes next to no time: one square layer, on images of a few pixels."""
    width = 3308
    first = nn.Linear(math.prod(input_shape), width)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def in_files(directory: Path, clients: int, cohort: int, limit_gib: float) -> None:
    """Train a round of all clients, then smaller ones, once straight and once killed, within a limit of memory."""
    data = f"--data.synthetic={{examples: {4 * clients}, test_examples: 10, shape: [1, 4, 4]}}"
    common = [data, "--model.name=scale_files:wide", f"--clients.num={clients}", "--compression.density=0.001"]
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
    """Count the weights of the wide model."""
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
    """Read the bytes of a run's model, and the checksum of each client's memory."""
    last = max((directory / name / "checkpoints").iterdir())
    saved = [torch.load(path, mmap=True)["slots"]["versions"] for path in sorted(last.glob("rank-*.pt"))]
    checksums = {client: checksum for own in saved for client, (_, checksum) in own.items()}
    return (directory / name / "model.safetensors").read_bytes(), dict(sorted(checksums.items()))


def watched(name: str, group: Cgroup, directory: Path, process: subprocess.Popen[bytes]) -> tuple[str, ...]:
    """Wait for a run; returns a row with its seconds, memory and disk."""
    say(name)
    start = time.time()
    held = 0
    while process.poll() is None:
        held = max(held, group.held())
        time.sleep(0.2)
    check(process, directory)
    seconds = time.time() - start
    blocks = {path.stat().st_ino: 512 * path.stat().st_blocks for path in directory.glob("*-states/*/*.bin")}
    sizes = (f"{group.peak() / GIB:.2f}", f"{held / GIB:.2f}", f"{sum(blocks.values()) / 1e9:.1f}")
    return (name, f"{seconds:.0f}", *sizes)
