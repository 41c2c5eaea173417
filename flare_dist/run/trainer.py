"""A run from start to end: build it, play its rounds, keep its records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flare_dist.comm.group import open_world, with_neighbours
from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World
from flare_dist.config.config import NAMED, Config
from flare_dist.data.batches import check_enough
from flare_dist.data.source import Source
from flare_dist.engines.determinism import deterministic
from flare_dist.errors import OutOfMemoryError, is_out_of_memory, reason
from flare_dist.named import WrongResultError
from flare_dist.records import rundir, statedir
from flare_dist.records.resume import resolve
from flare_dist.records.trackers import check_installed
from flare_dist.rounds.build_run import Loaded, Run, build_run, load_parts, resolve_by_model
from flare_dist.rounds.centralised import centralised_round
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.gradient import gradient_round
from flare_dist.rounds.skipped import skipped_on_all_ranks
from flare_dist.rounds.stage_one import begin_masks, with_beginning
from flare_dist.run.blame import blamed
from flare_dist.run.checks import check_run
from flare_dist.run.continuing import check_shared, resume, save_checkpoint
from flare_dist.run.recorder import OnRound, open_recorder
from flare_dist.seeding import draws_kept

log = logging.getLogger(__name__)


def train(
    config: Config,
    launch: Launch,
    console: Console,
    on_round: OnRound | None = None,
    data: Source | None = None,
) -> dict[str, Any]:
    """Train as configured, on the data that the configuration names or on `data`.

    Returns the summary, {} on ranks other than 0. `on_round` is called after each round with its row, as far as this
    rank knows it.

    Raises ValueError for what the user can put right, before any process group starts if one rank alone can tell, and
    DivergedError on every rank if no client of a round brings a usable update.
    """
    with deterministic(config.engine.deterministic):
        return _train(config, launch, console, on_round, data)


def _train(
    config: Config, launch: Launch, console: Console, on_round: OnRound | None, data: Source | None
) -> dict[str, Any]:
    directory = Path(config.output_dir)
    check_installed(config.tracking)
    held = rundir.holds_run(directory)
    launch.warn_of_tasks_alone()
    launch = with_neighbours(launch, config.engine.timeout_seconds)
    config, source = resolve(config, launch.local_size)
    summary = rundir.read_summary(directory) if source == directory else None
    config = statedir.resolve(config, source, is_finished=summary is not None)
    torch.set_num_threads(config.engine.threads or 1)
    torch.set_flush_denormal(True)  # CPUs take many times as long over them, and saturated softmaxes give many
    device = launch.device(config.engine.device)
    if summary is None and source == directory and config.mode == "gradient" and config.gradients.hook == "powersgd":
        log.warning("gradients.hook: powersgd's memory is not in checkpoints; the run starts over")
        source = None
    given = _load(config, launch, data) if summary is None else None
    config = given.config if given else config
    with (
        draws_kept(device),
        rundir.claim(directory, held) if launch.rank == 0 else nullcontext(),
        statedir.claim(config) if launch.rank == 0 and given else nullcontext(),
        _opened(config, launch, device) as world,
    ):
        check_shared(directory, world, [source is None, summary is None])
        if given:
            run = build_run(config, world, given.data, given.parts, given.model)
            return _play(given, source, run, console, on_round)
    log.info("%s is finished; for more rounds: --checkpoint.resume %s --output_dir NEW", directory, directory)
    return summary or {}


def _opened(config: Config, launch: Launch, device: torch.device) -> AbstractContextManager[World]:
    """Open the ranks of a run; some engines need a process group even of one rank."""
    engine = config.engine
    alone = config.mode == "gradient" or engine.name != "accelerate"
    seconds = engine.step_timeout_seconds
    return open_world(launch, device, engine.timeout_seconds, alone=alone, step_seconds=seconds, shards=engine.shards)


def _load(config: Config, launch: Launch, data: Source | None) -> Loaded:
    """Load the data and the model, check them against the run, and resolve the keys that they decide."""
    given = load_parts(config, data)
    check_run(given.config, given.parts, given.model, launch.size)
    config = resolve_by_model(given, given.config.engine.device)
    if config.mode == "gradient":
        check_enough(len(given.data.train), config.clients.batch_size, launch.size)
    return given._replace(config=config)


def _play(given: Loaded, source: Path | None, run: Run, console: Console, on_round: OnRound | None) -> dict[str, Any]:
    """Play the rounds that are left, and keep their records; returns the summary (empty on ranks other than 0)."""
    config = given.config
    first_round, rows = resume(config, source, run)
    beginning = begin_masks(run, console) if isinstance(run, Federation) else {}
    rows[-1:] = [with_beginning(row, beginning) for row in rows[-1:]]  # of a dense run that this one goes on from
    goes_on_from_another = source not in (None, Path(config.output_dir))
    first = first_round if goes_on_from_another else 1
    with open_recorder(given, run, rows, console, first, on_round) as recorder:
        if first_round == 1:
            recorder.begin(beginning)
        for round_ in range(first_round, config.rounds + 1):
            row = _play_round(round_, config, run)
            is_saved = round_ == config.rounds or round_ % config.checkpoint.every == 0
            recorder.write(row, is_saved)
            if is_saved:
                save_checkpoint(config, round_, run)
        return recorder.finish()


def _play_round(round_: int, config: Config, run: Run) -> dict[str, Any]:
    """Play a round of the mode; returns its row. A fault that is not the user's is raised as RuntimeError."""
    world = run.world
    try:
        with blamed(config, round_, world.rank), _memory_named(config, round_, world), world.progress.watched():
            return ROUNDS[config.mode](round_, run) | skipped_on_all_ranks(world, run.source, config.data.on_error)
    except ValueError as error:
        if isinstance(error, WrongResultError) or str(error).startswith(NAMED):
            raise
        # Nothing that the user typed: keep the traceback, on whichever rank.
        raise RuntimeError(f"round {round_} failed on rank {world.rank}") from error


@contextmanager
def _memory_named(config: Config, round_: int, world: World) -> Iterator[None]:
    """Raise OutOfMemoryError with what to do, in one line, if the block finds no memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        place = f"round {round_} on rank {world.rank} ({world.device}: {reason(error)[:200]})"
        raise OutOfMemoryError(
            f"clients.batch_size: out of memory in {place}, got {config.clients.batch_size}; lower it, or raise "
            "engine.gradient_accumulation_steps"
        ) from error


ROUNDS: dict[str, Callable[..., dict[str, Any]]] = {
    "federated": federated_round,
    "gradient": gradient_round,
    "centralised": centralised_round,
}
