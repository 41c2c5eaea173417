"""Start launchers in sessions of their own, as from a terminal, and wait for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
RUNNING: list[subprocess.Popen[str]] = []


def launched(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """Start a launcher in a session of its own, as from a terminal."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    RUNNING.append(process)
    return process


def torchrun(
    directory: Path, *arguments: str, options: tuple[str, ...] = (), config: str = "configs/smoke.yaml"
) -> subprocess.Popen[str]:
    """Train a small configuration on two ranks of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options]
    command += ["-m", "flare_dist", "train", "--config", config, "--output_dir", str(directory)]
    return launched([*command, *arguments], ENVIRONMENT)


def finished(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for a launcher; it must succeed without a warning of Python's. Returns its output."""
    output, error = process.communicate(timeout=seconds)
    assert process.returncode == 0, error
    assert "Warning: " not in error, error
    return output
