"""The package from Python: in a script, in a notebook, or in a script that torchrun starts.

    run = flare_dist.train("configs/quickstart.yaml", model=MyNet(), **{"clients.lr": 0.1})
    run.frame().plot("round", "test_accuracy")

The caller's threads, random generators and loggers are what they were before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.bandwidth_table import csv_row
from flare_dist.analysis.links import Link
from flare_dist.analysis.run_logs import read_run
from flare_dist.comm.launch import Launch
from flare_dist.config.settings import Settings, as_text, make_config
from flare_dist.data.source import Source
from flare_dist.errors import check_choice
from flare_dist.given import given
from flare_dist.progress import shown_on
from flare_dist.records.rundir import CONFIG
from flare_dist.run.evaluation import evaluate_run
from flare_dist.run.finished import FinishedRun
from flare_dist.run.formats import FORMATS, export_run
from flare_dist.run.objects import names_of, objects_by_key
from flare_dist.run.trainer import OnRound
from flare_dist.run.trainer import train as train_run
from flare_dist.studies.grid import Grid
from flare_dist.studies.sweep import sweep as train_grid
from flare_dist.tasks.task import Task


def train(
    config: Settings | FinishedRun = None,
    *,
    task: Task | Callable[..., Task] | None = None,
    data: Source | Callable[..., Source] | None = None,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    on_round: OnRound | Sequence[OnRound] = (),
    every_rank: bool = False,
    progress: bool = False,
    **values: Any,
) -> FinishedRun:
    """Train a run; the same call continues it if it was interrupted, as `flare-dist train` does.

    Args:
        config: A YAML file, nested keys as a dict, a Config, a run to go on with, or None for the defaults.
        task: What is learnt, instead of task.name.
        data: A Source, or a function (config, seed) -> Source, instead of data.name.
        model: A module, whose weights the run begins with and which is left as it is, or a function
            (input_shape, num_classes) -> module, instead of model.name.
        on_round: Functions that are called after each round with its row: what metrics.jsonl has of it, and
            `participants`, who took part.
        every_rank: Whether all ranks call them, each with what it knows of the round, or rank 0 alone.
        progress: Whether a bar is shown.
        values: More keys by dotted name, which win: **{"clients.lr": 0.1}.

    Returns what the run left behind, on every rank. config.yaml only names objects that came from Python: pass them
    again to continue or evaluate the run.

    Raises ValueError that begins with the dotted key of what is wrong, and DivergedError if training diverged.
    """
    objects = objects_by_key(task, data, model)
    if isinstance(config, FinishedRun):
        objects = {**config.objects, **objects}
        values = {"output_dir": config.directory, **values}
        if Path(values["output_dir"]).expanduser().absolute() != config.directory:
            values = {"checkpoint.resume": config.directory, **values}
        config = config.directory / CONFIG
    launch = Launch.from_environment()
    functions: list[Any] = list(on_round) if isinstance(on_round, list | tuple) else [on_round]
    if not all(map(callable, functions)):
        raise ValueError(f"on_round: must be a function of a row, or a list of them, got {on_round!r}; give print")
    functions = functions if launch.rank == 0 or every_rank else []

    def call(row: dict[str, Any]) -> None:
        for function in functions:
            function(dict(row))

    console = Console(stderr=True, quiet=launch.rank != 0 or not progress)
    with given(objects), machine_kept(), shown_on(console):
        resolved = make_config(config, names_of(objects) | values)
        train_run(resolved, launch, console, call)
    return FinishedRun(Path(resolved.output_dir).absolute(), objects)


def evaluate(
    run: FinishedRun | str | Path,
    which: str = "final",
    *,
    root: str | None = None,
    task: Task | Callable[..., Task] | None = None,
    data: Source | Callable[..., Source] | None = None,
    model: nn.Module | Callable[..., nn.Module] | None = None,
) -> dict[str, float]:
    """Measure a model that a run saved on its test set, as `flare-dist evaluate` does: the best metric first.

    `which` is final or best. Objects that the run was given from Python are those of a FinishedRun, or are given again.
    """
    directory, objects = _opened(run, objects_by_key(task, data, model))
    with given(objects), machine_kept():
        return evaluate_run(directory, which, root)


def export(
    run: FinishedRun | str | Path,
    to: str | Path,
    *,
    which: str = "final",
    format: str = "safetensors",
    root: str | None = None,
    task: Task | Callable[..., Task] | None = None,
    data: Source | Callable[..., Source] | None = None,
    model: nn.Module | Callable[..., nn.Module] | None = None,
) -> list[Path]:
    """Write a model that a run saved for others, as `flare-dist export` does, which explains the formats.

    The other arguments are those of `evaluate`. Returns the paths written: the model, and what its inputs must be.
    """
    directory, objects = _opened(run, objects_by_key(task, data, model))
    check_choice("format", format, FORMATS)
    try:
        with given(objects), machine_kept():
            return export_run(directory, which, format, Path(to).expanduser(), root)
    except ValueError as error:  # of a command line, whose options begin with dashes
        raise ValueError(str(error).removeprefix("--")) from error


def sweep(
    config: Settings = None,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (0,),
    ranks: int = 1,
    **values: Any,
) -> list[dict[str, Any]]:
    """Train every combination of `grid`, dotted keys with their values, as `flare-dist sweep` does.

    The best value of the keys of `tune` is chosen with the first seed on the validation set. Each run is a process of
    its own with so many `ranks`, so data, tasks and models are named, as package.module:callable. Returns the rows of
    results.csv.
    """
    tried = _as_texts(grid)
    tuned = _as_texts(tune)
    with machine_kept():
        return train_grid(make_config(config, values), Grid(tried, tuned, list(seeds)), ranks)


def bandwidth(
    runs: Sequence[FinishedRun | str | Path],
    links: Sequence[str] = (),
    *,
    topology: str = "ranks",
    target: float | None = None,
    ranks: int | None = None,
) -> list[dict[str, Any]]:
    """Compare bytes and seconds of runs, and project them on `links` such as "100Mbps/20ms", from their logs.

    Returns a row for each run, as bandwidth.csv has it. `flare-dist bandwidth` explains the arguments.
    """
    logs = [read_run(run.directory if isinstance(run, FinishedRun) else Path(run), {}, ranks) for run in runs]
    return [csv_row(totals(log, list(map(Link.parse, links)), topology, target)) for log in logs]


def _as_texts(values_of: Mapping[str, Sequence[Any]] | None) -> dict[str, list[str]]:
    """Write the values of each key as on the command line."""
    return {key: [as_text(value, key) for value in values] for key, values in (values_of or {}).items()}


def _opened(run: FinishedRun | str | Path, objects: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the directory of a run, and the objects that it was given, of which new ones win."""
    return (run.directory, {**run.objects, **objects}) if isinstance(run, FinishedRun) else (Path(run), objects)


@contextmanager
def machine_kept() -> Iterator[None]:
    """Give the caller's threads and treatment of denormal numbers back after the block."""
    threads = torch.get_num_threads()
    flushes = not (torch.tensor([1e-40]) * 1.0).count_nonzero()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)
