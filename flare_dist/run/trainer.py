"""A run from start to end: set the parties up, play the rounds, keep the records."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.state import ClientStates
from flare_dist.comm.distributed import Launch, World, open_world
from flare_dist.compression.compressor import Compressor
from flare_dist.data.batches import BatchSource
from flare_dist.data.datasets import DataSplits, load
from flare_dist.data.partition import partition
from flare_dist.engines.accelerate import AccelerateEngine
from flare_dist.engines.config import default_threads
from flare_dist.models.registry import build
from flare_dist.run import checkpoint, rundir
from flare_dist.run.config import Config
from flare_dist.run.evaluation import evaluate
from flare_dist.run.files import save_model, write_text
from flare_dist.run.rounds import ROUNDS, Parties
from flare_dist.run.tracking import Tracker, read_rows, summary_table
from flare_dist.server.server import Server

log = logging.getLogger(__name__)


def train(config: Config, launch: Launch, console: Console) -> None:
    """Train as configured.

    Raises ValueError for what the user can put right, before any process group starts, and DivergedError on every
    rank where no client of a round brings a usable update.
    """
    config, source = rundir.settle(config, default_threads(launch.local_size))
    directory = Path(config.output_dir)
    finished = rundir.read_summary(directory) if source == directory else None
    if finished is not None:
        log.info("%s is finished; train on with --checkpoint.resume %s and another output_dir", directory, directory)
        _show(launch, directory, finished)
        return
    torch.set_num_threads(config.engine.threads or 1)
    device = launch.device(config.engine.device)
    data = load(config.data, config.seed)
    parts = divide(config, data)
    model = build(config.model.name, config.model.norm, data.input_shape, data.num_classes, config.seed)

    with open_world(launch, device, config.engine.timeout_seconds) as world:
        _check_shared(directory, world)
        parties = gather_parties(config, world, data, parts, model)
        evaluate_global = _evaluator(parties, data)
        first_round, rows = _resume(config, source, parties)
        with Tracker(directory, rows, config.rounds, console) if world.rank == 0 else nullcontext() as tracker:
            if tracker and not rows:
                tracker.write({"round": 0} | evaluate_global())
            for round_ in range(first_round, config.rounds + 1):
                last = round_ == config.rounds
                row = ROUNDS[config.mode](round_, config, parties)
                if tracker:
                    if last or round_ % config.eval_every == 0:
                        row |= evaluate_global()
                        if rundir.is_best(row, tracker.rows):
                            save_model(directory / rundir.BEST, parties.trainer.model)
                    tracker.write(row)
                if last or round_ % config.checkpoint.every == 0:
                    if tracker:
                        tracker.sync()
                    _save(config, round_, parties)
            if tracker:
                save_model(directory / rundir.MODEL, parties.trainer.model)
                hardware = {"device": device.type, "ranks": world.size, "threads": config.engine.threads}
                finished = rundir.summarise(tracker.rows, tracker.elapsed_seconds, hardware)
                write_text(directory / rundir.SUMMARY, json.dumps(finished, indent=1))
    if finished is not None:
        _show(launch, directory, finished)


def divide(config: Config, data: DataSplits) -> list[Tensor]:
    """The indices of each client's examples; in centralised mode one client holds them all."""
    if config.mode == "centralised":
        return [torch.arange(len(data.train.labels))]
    return partition(config.data, data.train, data.num_classes, config.clients.num, config.seed)


def gather_parties(config: Config, world: World, data: DataSplits, parts: list[Tensor], model: nn.Module) -> Parties:
    engine = AccelerateEngine(config.engine, world.device)
    source = BatchSource(data.train, data.mean, data.std, world.device, config.data.augment)
    trainer = LocalTrainer(engine, model, source, config.clients, config.rounds, config.seed)
    compressor = Compressor(config.compression, trainer.layout, config.seed)
    states = ClientStates(compressor.state_names, trainer.layout.total, world.device)
    server = Server(trainer.parameters, trainer.buffers, config.server, config.rounds)
    return Parties(world, trainer, compressor, states, server, parts)


def _evaluator(parties: Parties, data: DataSplits) -> Callable[[], dict[str, float]]:
    """A function that gives the global model's loss and accuracy; it leaves the global model in the trainer's."""
    held_out = {"test": data.test} | ({"validation": data.validation} if data.validation else {})
    device = parties.world.device
    sources = {name: BatchSource(split, data.mean, data.std, device) for name, split in held_out.items()}

    def evaluate_global() -> dict[str, float]:
        parties.trainer.load(parties.server.parameters.data, parties.server.buffers)
        metrics = {}
        for name, source in sources.items():
            metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = evaluate(parties.trainer.model, source)
        return metrics

    return evaluate_global


def _check_shared(directory: Path, world: World) -> None:
    """Raise ValueError where the output directory is not the same for all ranks (several nodes, no shared disk)."""
    token = torch.randint(2**62, (1,)) if world.rank == 0 else torch.zeros(1, dtype=torch.int64)
    mark = directory / f".shared-{world.broadcast_(token).item()}"
    if world.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        mark.touch()
    world.wait_for_all()
    seen = world.all_true(mark.exists())
    if world.rank == 0:
        mark.unlink()
    if not seen:
        raise ValueError(f"output_dir: {directory} is not shared by all nodes, which checkpoints and resuming need")


def _resume(config: Config, source: Path | None, parties: Parties) -> tuple[int, list[dict[str, Any]]]:
    """Put the state of the run being continued in place; returns the first round to play and the rows before it."""
    directory, world = Path(config.output_dir), parties.world
    layout = parties.trainer.layout.describe()
    restored = checkpoint.restore(source / rundir.CHECKPOINTS, world, layout) if source else None
    if restored is not None:
        parties.server.load_state_dict(restored.server)
        for client, memory in restored.clients.items():
            parties.states.load(client, memory)
        if config.mode == "centralised" and world.rank == 0:
            parties.trainer.optimizer.load_state_dict(restored.server["local_optimizer"])
        log.info("continuing %s after round %d", source, restored.round)
    rows = read_rows(source, restored.round) if source and restored else []
    if world.rank == 0:
        if source != directory:
            rundir.clear(directory)
            if source and (source / rundir.BEST).exists():
                shutil.copy(source / rundir.BEST, directory / rundir.BEST)
        rundir.write_config(directory, config)
    world.wait_for_all()
    return restored.round + 1 if restored else 1, rows


def _save(config: Config, round_: int, parties: Parties) -> None:
    server = parties.server.state_dict()
    if config.mode == "centralised":
        server["local_optimizer"] = parties.trainer.optimizer.state_dict()
    directory = Path(config.output_dir) / rundir.CHECKPOINTS
    layout = parties.trainer.layout.describe()
    checkpoint.save(directory, round_, parties.world, layout, server, parties.states.clients, config.checkpoint.keep)


def _show(launch: Launch, directory: Path, summary: dict[str, Any]) -> None:
    if launch.rank == 0:
        output = Console()
        output.print(summary_table(summary))
        output.print(f"run directory: {directory}", soft_wrap=True)
