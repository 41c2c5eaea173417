"""The loss and the metrics of a model on a data set."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flare_dist.clients.evaluation import batch_size, evaluate, evaluation_seed
from flare_dist.config.config import Config
from flare_dist.config.load import load_config
from flare_dist.data.batches import Batches
from flare_dist.data.datasets import DataSplits, load
from flare_dist.engines.placement import place
from flare_dist.fixed import load_trained
from flare_dist.layout import separate_buffers
from flare_dist.progress import Steps
from flare_dist.records.files import load_model
from flare_dist.records.rundir import CONFIG, find_model
from flare_dist.rounds.build_run import Run, build_for
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.skipped import skipped_here
from flare_dist.run.counted import Counted
from flare_dist.run.members import members_evaluator


def evaluator(config: Config, run: Run, data: DataSplits) -> Callable[[], dict[str, Any]]:
    """Return a function that measures the global model's loss and metrics on what is held out.

    If clients hold a view of it that lacks something, that view is `test_`, and the server's own `server_test_`.
    """
    held_out = {"test": data.test} | ({} if data.validation is None else {"validation": data.validation})
    device = run.world.device
    sources = {name: data.batches(split, device) for name, split in held_out.items()}
    for source in sources.values():
        source.on_batch = run.world.on_batch

    views = {"": run.view}
    if run.view.data_ptr() != run.server.parameters.data_ptr():
        views["server_"] = run.server.parameters.data

    trained_on = {"clients": run.clients.trainer.source} if isinstance(run, Federation) else {}
    at_once = batch_size(data.is_resident, config.clients.batch_size)

    def measure(part: str, indices: Tensor | None = None) -> dict[str, float]:
        seed = evaluation_seed(config.seed, part)
        return evaluate(run.model.module, (sources | trained_on)[part], run.task, seed, at_once, indices)

    evaluate_members = members_evaluator(config, run, data.test, measure)
    of_members = {"group": sources["test"]} | ({"client": trained_on["clients"]} if trained_on else {})

    def evaluate_global() -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        with run.world.progress.watched():
            for (prefix, view), name in itertools.product(views.items(), sources):
                run.model.load(view, run.server.buffers)
                metrics |= {f"{prefix}{name}_{metric}": value for metric, value in measure(name).items()}
                metrics |= _skipped(f"{prefix}{name}", sources[name])
            if evaluate_members is not None:
                run.model.load(run.view, run.server.buffers)
                metrics |= evaluate_members()
                for kind, source in of_members.items():
                    metrics |= _skipped(kind, source)
        return metrics

    return evaluate_global


def _skipped(whose: str, source: Batches) -> dict[str, int]:
    """Count for the row the examples that could not be read; nothing if all could."""
    skipped = skipped_here(source)
    return {f"{whose}_skipped_examples": skipped} if skipped else {}


def evaluate_run(directory: Path, which: str, root: str | None) -> dict[str, float]:
    """Measure the model that a run saved on the test set; returns the task's best metric first.

    `which` is final or best; `root` moves the data.

    Raises ValueError if `directory` holds no such model.
    """
    path = find_model(directory, which, "evaluate")
    config = load_config(directory / CONFIG)
    data_config = dataclasses.replace(config.data, root=root or config.data.root)
    data = load(data_config, config.seed, config.task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = config.engine
    if device.type == "cpu" and engine.mixed_precision == "fp16":  # trained on a GPU: the weights are float32 anyway
        engine = dataclasses.replace(engine, mixed_precision="no")
    torch.set_num_threads(engine.threads or 1)
    model = build_for(config, data)
    separate_buffers(model)
    load_trained("evaluate", str(path), model, *load_model(path))
    _, model = place(engine, model, device)
    test = data.batches(data.test, device)
    seed = evaluation_seed(config.seed, "test")
    at_once = batch_size(data.is_resident, config.clients.batch_size)
    with Steps("evaluation: batches", math.ceil(len(test) / at_once)) as shown:
        found = evaluate(model, Counted(test, shown), data.task, seed, at_once)
    if skipped := skipped_here(test):
        found["skipped_examples"] = skipped
    metric, _ = data.task.best
    return {metric: found[metric]} | found
