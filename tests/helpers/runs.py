"""Whole runs of seconds for tests: start one on any number of ranks, kill it in a round, compare two of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.data.source import Source
from flare_dist.run import recorder, trainer
from flare_dist.run.trainer import train
from flare_dist.server.config import ServerConfig
from tests.ranks import run_ranks

OF_CLOCKS = ("time", "bucket_sent_after")  # and every key in _seconds
OF_RANKS = ("wire_bytes", "ranks", "collectives")  # these follow the number of ranks


def tiny(directory: Path, **changes: Any) -> Config:
    """Configure six rounds of five clients on 120 synthetic images; `changes` replace sections or keys."""
    config = Config(
        rounds=6,
        eval_every=2,
        output_dir=str(directory),
        data=DataConfig(
            name="synthetic",
            validation=0.1,
            synthetic=SyntheticConfig(examples=120, test_examples=30, shape=(1, 5, 5), classes=3),
        ),
        clients=ClientsConfig(num=5, per_round=3, batch_size=8, lr=0.05, lr_schedule="cosine"),
        compression=CompressionConfig(density=0.02),
        server=ServerConfig(momentum=0.5),
        checkpoint=CheckpointConfig(every=2),
    )
    return dataclasses.replace(config, **changes)


class Killed(BaseException):
    """Stands for kill -9: nothing that the run could catch."""


def start(config: Config, world_size: int = 1, kill_in_round: int | None = None, data: Source | None = None) -> None:
    """Train on `world_size` ranks; `kill_in_round` ends every rank in the middle of that round.

    Round 7 of 6 is the moment between the last checkpoint and the final model.
    """
    if world_size == 1:
        start_rank(World(), config, kill_in_round, data)
    else:
        run_ranks(start_rank, world_size, config, kill_in_round, data, shards=config.engine.shards)


def start_rank(world: World, config: Config, kill_in_round: int | None = None, data: Source | None = None) -> None:
    """Train as one rank of a process group that there is already."""
    play, save = trainer.ROUNDS[config.mode], recorder.save_global

    def play_or_die(round_: int, run: Any) -> dict[str, Any]:
        row = play(round_, run)
        if round_ == kill_in_round:
            raise Killed
        return row

    def save_or_die(path: Path, run: Any, described: dict[str, str]) -> None:
        if kill_in_round == config.rounds + 1 and path.name == "model.safetensors":
            raise Killed
        save(path, run, described)

    class Group:
        """The process group that the test's rank already has."""

        def __enter__(self) -> World:
            return world

        def __exit__(self, *exception: object) -> None: ...

    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, device="cpu", threads=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trainer.ROUNDS, config.mode, play_or_die)
        patch.setattr(recorder, "save_global", save_or_die)
        patch.setattr(trainer, "open_world", lambda *arguments, **settings: Group())
        try:
            train(config, Launch(world.rank, world.size, world.rank, world.size), Console(quiet=True), data=data)
        except Killed:
            assert kill_in_round is not None


def results(directory: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Read the final model, and the rows of metrics.jsonl without what clocks measure."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.endswith("_seconds") and k not in OF_CLOCKS} for row in rows]
    return load_file(directory / "model.safetensors"), kept


def assert_same_run(one: Path, other: Path, wire: bool = True) -> None:
    """Assert that two runs have the same model and metrics to the bit; `wire` compares what follows the ranks too."""
    model, rows = results(one)
    other_model, other_rows = results(other)
    assert model.keys() == other_model.keys()
    assert all(torch.equal(model[name], other_model[name]) for name in model)
    assert load_file(one / "best.safetensors").keys() == model.keys()
    if not wire:
        rows, other_rows = (
            [{key: value for key, value in row.items() if key not in OF_RANKS} for row in both]
            for both in (rows, other_rows)
        )
    assert rows == other_rows


def data_parallel(directory: Path | str, **changes: Any) -> Config:
    """Configure data-parallel training on the data of `tiny`, in rounds of three steps."""
    base = tiny(Path(directory))
    clients = dataclasses.replace(base.clients, momentum=0.9, lr_schedule="constant")
    return dataclasses.replace(base, mode="gradient", eval_every=3, clients=clients, **changes)
