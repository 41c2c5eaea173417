"""The data of a run: a named source, cut into train, validation and test, and the statistics that normalise it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flare_dist.compatibility import EXCLUSIONS
from flare_dist.data.config import DataConfig
from flare_dist.data.examples import Examples, check_examples, hold_out
from flare_dist.data.normalization import NORMALIZATIONS
from flare_dist.data.sources import SOURCES, Source
from flare_dist.exclusion import refuse
from flare_dist.seeding import generator
from flare_dist.tasks.config import AUTO, find_task
from flare_dist.tasks.task import Task


@dataclass(frozen=True)
class DataSplits:
    """Hold the parts on which a run trains, is tuned and is tested; batches are (x - mean) / std."""

    train: Examples
    validation: Examples | None
    test: Examples
    num_classes: int
    mean: Tensor  # float32 [C], in raw pixel units; of text [0]
    std: Tensor  # float32 [C], in raw pixel units; of text [0]
    task: Task
    task_name: str
    class_names: tuple[str, ...] = ()  # () = they have none
    white: float = 255.0  # the largest pixel value

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return (channels, height, width) of one image, or (length,) of one text."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def blank(self) -> Tensor:
        """Make an input of zeros to try a model on: float32 [1, C, H, W], of text int64 [1, T]."""
        return torch.zeros(1, *self.input_shape, dtype=torch.int64 if self.train.is_text else torch.float32)


def load(config: DataConfig, seed: int, task_name: str = AUTO) -> DataSplits:
    """Read the data set of `config`; `seed` decides what is held out and what synthetic data look like.

    The task is the data's natural one, unless `task_name` names another. Raises ValueError that names `data.root` if
    files are missing or damaged, and `data.name` if the task cannot learn from these examples.
    """
    source = SOURCES[config.name](config, seed)
    task_name = source.task if task_name == AUTO else task_name
    task = find_task(task_name)
    _check_source(config.name, source, task_name)
    train = source.train
    validation = None
    if config.validation > 0:
        train, validation = hold_out(train, config.validation, generator(seed, "validation"))
    if source.train.is_text:
        refuse(EXCLUSIONS, data=config, is_text=True)
        mean = std = torch.empty(0)
    else:
        mean, std = NORMALIZATIONS[config.normalize](train, source)
    names = source.class_names
    return DataSplits(
        train, validation, source.test, source.num_classes, mean, std, task, task_name, names, source.white
    )


def _check_source(name: str, source: Source, task_name: str) -> None:
    another = f" (task.name={task_name})" if task_name != source.task else ""
    for part, examples in (("train", source.train), ("test", source.test)):
        try:
            check_examples(examples, source.num_classes, find_task(task_name))
        except ValueError as error:
            raise ValueError(f"data.name: {name}: {part}: {error}{another}") from error
    trained, tested = (tuple(examples.inputs.shape[1:]) for examples in (source.train, source.test))
    if trained != tested:
        raise ValueError(f"data.name: {name}: test: inputs must have the shape {trained} of train, got {tested}")
