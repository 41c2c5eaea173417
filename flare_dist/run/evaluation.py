"""The loss and the metrics of a model on a data set."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from flare_dist.config.config import Config
from flare_dist.config.load import load_config
from flare_dist.data.batches import BatchSource
from flare_dist.data.datasets import DataSplits, load
from flare_dist.engines.placement import place
from flare_dist.layout import separate_buffers
from flare_dist.records.rundir import CONFIG, find_model
from flare_dist.rounds.build_run import Run, build_for
from flare_dist.seeding import derive_seed, seeded
from flare_dist.tasks.metrics import add, finish, measure
from flare_dist.tasks.task import Amount, Task

BATCH_SIZE = 500  # fixed: the bits of a float32 forward pass depend on it


def evaluation_seed(seed: int, split: str) -> int:
    """Derive the seed of a model that draws in evaluation mode, too.

    It is the same after every round: models are compared under the same draws, and a saved one gives the figure that
    its run measured, whichever round it is of.
    """
    return derive_seed(seed, f"evaluation on {split}")


@torch.no_grad()
def evaluate(model: nn.Module, source: BatchSource, task: Task, seed: int = 0) -> dict[str, float]:
    """Measure `model` in evaluation mode over all of `source`: the mean loss and the task's metrics, by name.

    What the model draws follows from `seed`, and the caller's generators are left as they are.
    """
    model.eval()
    totals: dict[str, Amount] = {}
    with seeded(seed, source.labels.device):
        for batch in source.batches(None, BATCH_SIZE, None, smallest=2):  # squeeze() would take one's axis
            totals = add(totals, measure(task, model, batch))
    return finish(task, totals)


def evaluator(config: Config, run: Run, data: DataSplits) -> Callable[[], dict[str, float]]:
    """Return a function that measures the global model's loss and metrics on what is held out.

    If clients hold a view of it that lacks something, that view is `test_`, and the server's own `server_test_`.
    """
    held_out = {"test": data.test} | ({"validation": data.validation} if data.validation else {})
    device = run.world.device
    sources = {name: BatchSource(split, data.mean, data.std, device) for name, split in held_out.items()}

    views = {"": run.view}
    if run.view.data_ptr() != run.server.parameters.data_ptr():
        views["server_"] = run.server.parameters.data

    def evaluate_global() -> dict[str, float]:
        metrics: dict[str, float] = {}
        for (prefix, view), (name, source) in itertools.product(views.items(), sources.items()):
            run.model.load(view, run.server.buffers)
            seed = evaluation_seed(config.seed, name)
            found = evaluate(run.model.module, source, run.task, seed)
            metrics |= {f"{prefix}{name}_{metric}": value for metric, value in found.items()}
        return metrics

    return evaluate_global


def evaluate_run(directory: Path, which: str, root: str | None) -> dict[str, float]:
    """Measure the model that a run saved on the test set; returns the task's best metric first.

    `which` is final or best; `root` moves the data.

    Raises ValueError if `directory` holds no such model.
    """
    path = find_model(directory, which, "evaluate")
    config = load_config(directory / CONFIG)
    data_config = dataclasses.replace(config.data, root=root or config.data.root)
    data = load(data_config, config.seed, config.task.name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = config.engine
    if device.type == "cpu" and engine.mixed_precision == "fp16":  # trained on a GPU: the weights are float32 anyway
        engine = dataclasses.replace(engine, mixed_precision="no")
    torch.set_num_threads(engine.threads or 1)
    model = build_for(config, data)
    separate_buffers(model)
    model.load_state_dict(load_file(path))
    _, model = place(engine, model, device)
    test = BatchSource(data.test, data.mean, data.std, device)
    found = evaluate(model, test, data.task, evaluation_seed(config.seed, "test"))
    metric, _ = data.task.best
    return {metric: found[metric]} | found
