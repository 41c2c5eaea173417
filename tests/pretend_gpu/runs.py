"""Whole runs on the pretended GPU, or on the CPU, in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate.state import AcceleratorState
from rich.console import Console

from flare_dist.comm.launch import Launch
from flare_dist.config.load import build_config, config_parser
from flare_dist.engines import data_parallel
from flare_dist.run.trainer import train
from tests.pretend_gpu.cuda import pretend_gpu
from tests.pretend_gpu.ddp import PretendDDP
from tests.pretend_gpu.kernels import triton
from tests.pretend_gpu.log import Log
from tests.pretend_gpu.nccl import nccl
from tests.pretend_gpu.streams import STREAMS

Rows = list[dict[str, Any]]


def play(arguments: Sequence[str], device: str, directory: Path) -> Rows:
    """Train with these arguments; returns the rows of its metrics."""
    AcceleratorState._reset_state(True)
    parser = config_parser()
    values = [*arguments, "--output_dir", str(directory), "--engine.device", device]
    config = build_config(parser, parser.parse_args(values))
    logging.getLogger("flare_dist").setLevel(logging.ERROR)
    train(config, Launch(), Console(quiet=True))
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def play_on_gpu(arguments: Sequence[str], directory: Path) -> tuple[Rows, Log, dict[str, int]]:
    """Train on the pretended GPU; also returns what it did there, and the hazards between its streams."""
    with ExitStack() as stack:
        did = stack.enter_context(pretend_gpu())
        stack.enter_context(nccl())
        stack.enter_context(triton())
        stack.enter_context(patch.object(data_parallel, "DistributedDataParallel", PretendDDP))
        rows = play(arguments, "cuda", directory)
        return rows, did, dict(STREAMS.hazards)
