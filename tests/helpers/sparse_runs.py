"""Finished runs of sparse models, and what their checkpoints hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from flare_dist.comm.launch import Launch
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.run.trainer import train
from tests.helpers.masks import QUIET


def checkpointed(directory: Path, used: Config, **settings: Any) -> Path:
    """Train with a checkpoint in every round; returns the directory of the run."""
    own = dataclasses.replace(
        used, output_dir=str(directory), checkpoint=CheckpointConfig(every=1, **settings),
        engine=dataclasses.replace(used.engine, threads=1, device="cpu"),
    )  # fmt: skip
    train(own, Launch(), QUIET)
    return directory


def of_rank_0(directory: Path, round_: int) -> dict[str, Any]:
    path = directory / "checkpoints" / f"round-{round_:08d}" / "rank-00000.pt"
    return dict(torch.load(path, weights_only=True))
