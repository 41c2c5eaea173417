"""Checkpoints of a run: how it is saved, and how another process goes on from it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from flare_dist.clients.local_model import LocalModel
from flare_dist.comm.failures import on_all_ranks
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.disk import explained
from flare_dist.fixed import check_base
from flare_dist.records import checkpoint, rundir, statedir
from flare_dist.records.clients_log import cut_back
from flare_dist.records.metrics import read_rows
from flare_dist.rounds.alike import check_alike
from flare_dist.rounds.build_run import Run

log = logging.getLogger(__name__)


def check_shared(directory: Path, world: World, found: list[bool]) -> None:
    """Raise ValueError on all ranks if the output directory is not one and the same for them (no shared disk).

    `found` is what this rank has read from it; it decides what the ranks do next, so they must agree.
    """
    token = torch.randint(2**62, (1,)) if world.rank == 0 else torch.zeros(1, dtype=torch.int64)
    mark = directory / f".shared-{world.broadcast_to_all_(token).item()}"
    with on_all_ranks(world), explained("output_dir", mark):
        if world.rank == 0:
            mark.touch()
    views = world.gather_from_all(torch.tensor([mark.exists(), *found], dtype=torch.uint8))
    if world.rank == 0:
        mark.unlink()
    if not (views == views[0]).all():
        raise ValueError(f"output_dir: {directory} is not shared by all nodes, which checkpoints and resuming need")


def resume(config: Config, source: Path | None, run: Run) -> tuple[int, list[dict[str, Any]]]:
    """Restore the run being continued, if any; returns the first round to play and the rows before it."""
    directory = Path(config.output_dir)
    world = run.world
    if source is None:
        _prepare(config, source, 1, world)
        with on_all_ranks(world):
            run.take_over({}, None)
        return 1, []
    state_dir = statedir.of_source(config, source)
    restored = checkpoint.restore(
        source / rundir.CHECKPOINTS, world, whole_layout(run.model), state_dir, run.model.shard
    )
    if "base" in restored.server:
        check_base("checkpoint.resume", f"the run in {source}", run.model.base, restored.server["base"])
    run.load_state_dict(restored.server)
    memory = restored.clients
    of_gradients = "step" in restored.server  # a hook remembers gradients, a client deltas
    if memory and of_gradients != (config.mode == "gradient"):
        log.warning("mode: %s cannot use what the other run has not sent yet; it starts without", config.mode)
        memory = {}
    if source != directory and restored.round >= config.rounds:
        raise ValueError(f"rounds: {source} has played {restored.round} rounds already, rounds is {config.rounds}")
    rows = read_rows(source, restored.round)
    log.info("continuing %s after round %d", source, restored.round)
    _prepare(config, source, restored.round + 1, world)
    with on_all_ranks(world):
        run.take_over(memory, int(restored.server.get("step", 0)))
    return restored.round + 1, rows


def _prepare(config: Config, source: Path | None, first_round: int, world: World) -> None:
    """Clear the output directory of what is newer than the run being continued, and write the configuration."""
    directory = Path(config.output_dir)
    with on_all_ranks(world), explained("output_dir", directory):
        if world.rank != 0:
            return
        if source == directory:
            checkpoint.discard_after(directory / rundir.CHECKPOINTS, first_round - 1)
        else:
            statedir.clear(directory)
            rundir.clear(directory)
            for kept in source.glob(f"{Path(rundir.BEST).stem}.*") if source else ():
                shutil.copy(kept, directory / kept.name)
        if config.mode == "federated":
            cut_back(source, directory, first_round - 1)
        rundir.write_config(directory, config)
        statedir.mark(config)


def whole_layout(model: LocalModel) -> list[list[object]]:
    """Describe the vectors of the whole model, of which this rank may hold slices alone."""
    return (model.shard.whole if model.shard else model.layout).describe()


def save_checkpoint(config: Config, round_: int, run: Run) -> None:
    """Save what a resumed run needs; raises ValueError on all ranks if their models differ."""
    check_alike(round_, run.world, run.held_alike())
    with on_all_ranks(run.world):
        memory = run.memory_to_save(round_)
    directory = Path(config.output_dir) / rundir.CHECKPOINTS
    server = run.state_dict() | {"base": run.model.base}
    layout = whole_layout(run.model)
    keep = config.checkpoint.keep
    oldest = checkpoint.save(directory, round_, run.world, layout, server, memory, keep, run.model.shard)
    run.release(oldest)
