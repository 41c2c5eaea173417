"""A run from start to end: set the parties up, play the rounds, keep the records."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World, open_world
from flare_dist.config.config import Config, with_task
from flare_dist.data.batches import BatchSource, check_enough
from flare_dist.data.datasets import DataSplits, load
from flare_dist.disk import explained
from flare_dist.records import checkpoint, rundir, statedir
from flare_dist.records.files import on_all_ranks, save_model, write_text
from flare_dist.records.summary import is_best, summarise, summary_table
from flare_dist.records.tracking import Tracker, read_rows
from flare_dist.rounds.alike import check_alike
from flare_dist.rounds.centralised import centralised_round
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.gradient import export_memory, gradient_round, import_memory
from flare_dist.rounds.parties import Parties
from flare_dist.rounds.setup import build_for, build_parties, divide
from flare_dist.rounds.smallest import settle_smallest_batch
from flare_dist.rounds.stage_one import begin_masks, with_beginning
from flare_dist.rounds.together import settle_together
from flare_dist.run.checks import check_run
from flare_dist.run.evaluation import evaluate, evaluation_seed
from flare_dist.seeding import draws_kept

log = logging.getLogger(__name__)


def train(config: Config, launch: Launch, console: Console) -> None:
    """Train as configured.

    Raises ValueError for what the user can put right, before any process group starts where one rank alone can tell,
    and DivergedError on every rank where no client of a round brings a usable update.
    """
    directory = Path(config.output_dir)
    held = rundir.holds_run(directory)
    config, source = rundir.settle(config, launch.local_size)
    summary = rundir.read_summary(directory) if source == directory else None
    config = statedir.settle(config, source, is_finished=summary is not None)
    torch.set_num_threads(config.engine.threads or 1)
    torch.set_flush_denormal(True)  # CPUs take many times as long over them, and saturated softmaxes give many
    device = launch.device(config.engine.device)
    if summary is None and source == directory and config.mode == "gradient" and config.gradients.hook == "powersgd":
        log.warning("gradients.hook: powersgd's memory is not in checkpoints; the run starts over")
        source = None
    if summary is None:
        data = load(config.data, config.seed, config.task.name)
        config = with_task(config, data.task_name)
        parts = divide(config, data)
        model = build_for(config, data)
        check_run(config, parts, model, launch.size)
        config = settle_smallest_batch(config, parts.sizes, data, model)
        config = settle_together(config, model, data.blank, config.engine.device, data.task)
        if config.mode == "gradient":
            check_enough(len(data.train.labels), config.clients.batch_size, launch.size)

    needs_group = config.mode == "gradient" or config.engine.name == "deepspeed"
    with (
        draws_kept(device),
        rundir.claim(directory, held) if launch.rank == 0 else nullcontext(),
        statedir.claim(config) if launch.rank == 0 and summary is None else nullcontext(),
        open_world(launch, device, config.engine.timeout_seconds, "env://", needs_group) as world,
    ):
        _check_shared(directory, world, [source is None, summary is None])
        if summary is not None:
            log.info("%s is finished; for more rounds: --checkpoint.resume %s --output_dir NEW", directory, directory)
        else:
            parties = build_parties(config, world, data, parts, model)
            summary = _play(config, source, parties, data, console)
    if launch.rank == 0:
        output = Console()
        output.print(summary_table(summary))
        output.print(f"run directory: {directory}", soft_wrap=True)


def _play(config: Config, source: Path | None, parties: Parties, data: DataSplits, console: Console) -> dict[str, Any]:
    """All rounds that are left, and the records of them; returns the summary (empty on ranks other than 0)."""
    directory, world = Path(config.output_dir), parties.world
    first_round, rows = _resume(config, source, parties)
    beginning = {}
    if parties.masks and not parties.masks.have_begun:
        beginning = begin_masks(config, parties, console)
        rows[-1:] = [with_beginning(row, beginning) for row in rows[-1:]]  # of a dense run that this one goes on from
    with on_all_ranks(world):
        best = parties.task.best
        opened = Tracker(directory, rows, config.rounds, console, best) if world.rank == 0 else nullcontext()
    with opened as tracker:
        evaluate_global = _evaluator(config, parties, data) if tracker else None
        with on_all_ranks(world):
            if tracker and evaluate_global and first_round == 1:
                _record(tracker, {"round": 0} | evaluate_global() | beginning, directory, parties)
        for round_ in range(first_round, config.rounds + 1):
            last = round_ == config.rounds
            try:
                row = ROUNDS[config.mode](round_, config, parties)
            except ValueError as error:  # nothing that the user typed: keep the traceback, on whichever rank
                raise RuntimeError(f"round {round_} failed on rank {world.rank}") from error
            is_saved = last or round_ % config.checkpoint.every == 0
            with on_all_ranks(world):
                if tracker and evaluate_global:
                    due = last or config.mode == "gradient" or round_ % config.eval_every == 0
                    evaluated = evaluate_global() if due else {}
                    _record(tracker, row | evaluated, directory, parties)
                    if is_saved:
                        tracker.sync()
            if is_saved:
                _save(config, round_, parties)
        summary: dict[str, Any] = {}
        with on_all_ranks(world):
            if tracker:
                save_global(directory / rundir.MODEL, parties)
                hardware = {"device": config.engine.device, "ranks": world.size, "threads": config.engine.threads}
                summary = summarise(tracker.rows, tracker.elapsed_seconds, hardware, best)
                write_text(directory / rundir.SUMMARY, json.dumps(summary, indent=1))
        return summary


def _record(tracker: Tracker, row: dict[str, Any], directory: Path, parties: Parties) -> None:
    """Write one row to the logs, and the model where it is the best so far."""
    if is_best(row, tracker.rows, parties.task.best):
        save_global(directory / rundir.BEST, parties)
    tracker.write(row)


def save_global(path: Path, parties: Parties) -> None:
    """Write the global model, as clients hold it, in the dtypes that the user has given it."""
    model, server = parties.trainer.model, parties.server
    view = parties.downlink.view
    model.load(view, server.buffers)
    floats = dict(model.layout.views(view)) | dict(model.buffer_layout.views(server.buffers))
    names = {parameter: name for name, parameter in model.module.named_parameters()}  # tied ones have one name here
    state = model.module.state_dict(keep_vars=True)
    for name, dtype in model.dtypes.items():
        if state[name].dtype != dtype:  # the engine computes in a lower precision than it averages in
            state[name] = floats.get(names.get(state[name], name), state[name]).to(dtype)
    save_model(path, state)
    if parties.masks and not parties.masks.method.is_personal:
        save_model(path.with_suffix(rundir.MASKS_SUFFIX), parties.masks.by_name(model.layout))


def _evaluator(config: Config, parties: Parties, data: DataSplits) -> Callable[[], dict[str, float]]:
    """A function that gives the global model's loss and metrics on what is held out.

    Where clients hold a view of it that lacks something, that view is `test_`, and the server's own `server_test_`.
    """
    held_out = {"test": data.test} | ({"validation": data.validation} if data.validation else {})
    device = parties.world.device
    sources = {name: BatchSource(split, data.mean, data.std, device) for name, split in held_out.items()}

    views = {"": parties.downlink.view}
    if not parties.downlink.is_lossless:
        views["server_"] = parties.server.parameters.data

    def evaluate_global() -> dict[str, float]:
        metrics: dict[str, float] = {}
        for (prefix, view), (name, source) in itertools.product(views.items(), sources.items()):
            parties.trainer.model.load(view, parties.server.buffers)
            seed = evaluation_seed(config.seed, name)
            found = evaluate(parties.trainer.model.module, source, parties.task, seed)
            metrics |= {f"{prefix}{name}_{metric}": value for metric, value in found.items()}
        return metrics

    return evaluate_global


def _check_shared(directory: Path, world: World, found: list[bool]) -> None:
    """Raise ValueError on all ranks where the output directory is not one and the same for them (no shared disk).

    `found` is what this rank has read from it; it decides what the ranks do next, so they must agree.
    """
    token = torch.randint(2**62, (1,)) if world.rank == 0 else torch.zeros(1, dtype=torch.int64)
    mark = directory / f".shared-{world.broadcast_(token).item()}"
    with on_all_ranks(world), explained("output_dir", mark):
        if world.rank == 0:
            mark.touch()
    views = world.all_gather(torch.tensor([mark.exists(), *found], dtype=torch.uint8))
    if world.rank == 0:
        mark.unlink()
    if not (views == views[0]).all():
        raise ValueError(f"output_dir: {directory} is not shared by all nodes, which checkpoints and resuming need")


def _resume(config: Config, source: Path | None, parties: Parties) -> tuple[int, list[dict[str, Any]]]:
    """Put the state of the run being continued in place; returns the first round to play and the rows before it."""
    directory, world = Path(config.output_dir), parties.world
    first_round, rows = 1, []
    clients: Mapping[int, dict[str, Tensor]] = {}
    if source:
        layout, state_dir = parties.trainer.model.layout.describe(), statedir.of_source(config, source)
        restored = checkpoint.restore(source / rundir.CHECKPOINTS, world, layout, state_dir)
        parties.server.load_state_dict(restored.server)
        parties.downlink.load_state_dict(restored.server.get("downlink"))
        of_gradients = "step" in restored.server  # what a hook remembers is of gradients, a client's residual of deltas
        clients = restored.clients
        if clients and of_gradients != (config.mode == "gradient"):
            log.warning("mode: %s cannot use what the other run has not sent yet; it starts without", config.mode)
            clients = {}
        if parties.masks and "masks" in restored.server:
            parties.masks.load_state_dict(restored.server["masks"])
        if config.mode == "gradient":
            import_memory(parties, clients, int(restored.server.get("step", 0)))
        if config.mode != "federated" and "local_optimizer" in restored.server:
            parties.trainer.model.load_optimizer_state(config.clients.optimizer, restored.server["local_optimizer"])
        if source != directory and restored.round >= config.rounds:
            raise ValueError(f"rounds: {source} has played {restored.round} rounds already, rounds is {config.rounds}")
        first_round, rows = restored.round + 1, read_rows(source, restored.round)
        log.info("continuing %s after round %d", source, restored.round)
    with on_all_ranks(world), explained("output_dir", directory):
        if world.rank == 0:
            if source == directory:
                checkpoint.discard_after(directory / rundir.CHECKPOINTS, first_round - 1)
            else:
                statedir.clear(directory)
                rundir.clear(directory)
                for kept in source.glob(f"{Path(rundir.BEST).stem}.*") if source else ():
                    shutil.copy(kept, directory / kept.name)
            rundir.write_config(directory, config)
            statedir.mark(config)
    with on_all_ranks(world):
        if config.mode != "gradient":
            parties.states.take_over(clients)
    return first_round, rows


def _save(config: Config, round_: int, parties: Parties) -> None:
    check_alike(round_, config, parties)
    server = parties.server.state_dict() | {"downlink": parties.downlink.state_dict()}
    if parties.masks:
        server["masks"] = parties.masks.state_dict()
    if parties.data_parallel:
        memory = export_memory(parties)
        server["step"] = parties.data_parallel.hook.step
    else:
        with on_all_ranks(parties.world):
            memory = parties.states.for_checkpoint(round_)
    if config.mode != "federated":
        server["local_optimizer"] = parties.trainer.model.optimizer_state(config.clients.optimizer)
    directory = Path(config.output_dir) / rundir.CHECKPOINTS
    layout = parties.trainer.model.layout.describe()
    oldest = checkpoint.save(directory, round_, parties.world, layout, server, memory, config.checkpoint.keep)
    parties.states.release(oldest)


ROUNDS = {"federated": federated_round, "gradient": gradient_round, "centralised": centralised_round}
