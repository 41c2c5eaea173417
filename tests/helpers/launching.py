"""Start launchers in sessions of their own, as from a terminal or in forks, and wait for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.helpers.forked import RANKS, Forked
from tests.helpers.ports import free_port

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
RUNNING: list[subprocess.Popen[str] | Forked] = []


def launched(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """Start a launcher in a session of its own, as from a terminal."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    RUNNING.append(process)
    return process


def torchrun(
    directory: Path,
    *arguments: str,
    options: tuple[str, ...] = (),
    config: str = "configs/smoke.yaml",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Forked:
    """Train a small configuration on two ranks of torchrun, all of them forks; see `noted_ranks`."""
    environment = {**ENVIRONMENT, RANKS: str(noted_ranks(directory)), **environment}
    pipe = subprocess.PIPE
    process = Forked(training(directory, *arguments, options=options, config=config), environment, pipe, pipe)
    RUNNING.append(process)
    return process


def options_of(launcher: str, port: str, ranks: str = "2") -> list[str]:
    """Write the options that launch/*.sh gives to a launcher of launch/run.py, the last of which takes a module."""
    configured = ["--config_file", "launch/accelerate.yaml"]
    return {
        "torchrun": ["--standalone", "--nproc_per_node", ranks, "-m"],
        "accelerate": ["launch", *configured, "--num_processes", ranks, "--main_process_port", port, "--module"],
        "deepspeed": ["--num_gpus", ranks, "--master_port", port, "--no_local_rank", "--module"],
    }[launcher]


def forked(launcher: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> Forked:
    """Train on two ranks of a launcher of launch/run.py, all of them forks."""
    options = options_of(launcher, str(free_port()))
    environment = {**ENVIRONMENT, "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", **environment}
    command = [sys.executable, "launch/run.py", launcher, *options, "flare_dist", "train", *arguments]
    pipe = subprocess.PIPE
    process = Forked(command, environment, pipe, pipe)
    RUNNING.append(process)
    return process


def training(
    directory: Path, *arguments: str, options: tuple[str, ...] = (), config: str = "configs/smoke.yaml"
) -> list[str]:
    """Write the command that trains a small configuration on two ranks of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options]
    command += ["-m", "flare_dist", "train", "--config", config, "--output_dir", str(directory)]
    return [*command, *arguments]


def noted_ranks(directory: Path) -> Path:
    """Name the file in which the ranks that train into a directory note their process ids."""
    return directory.with_name(f"{directory.name}-ranks")


def finished(process: subprocess.Popen[str] | Forked, seconds: float = 240) -> str:
    """Wait for a launcher; it must succeed without a warning of Python's. Returns its output."""
    output, error = process.communicate(timeout=seconds)
    assert process.returncode == 0, error
    assert "Warning: " not in error, error
    return output
