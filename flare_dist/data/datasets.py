"""The data of a run: a named source, cut into train, validation and test, and the statistics that normalise it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flare_dist.compatibility import EXCLUSIONS
from flare_dist.data.config import DataConfig
from flare_dist.data.examples import Examples, check_examples, hold_out
from flare_dist.data.normalization import NORMALIZATIONS
from flare_dist.data.parts import open_part
from flare_dist.data.source import Source
from flare_dist.data.sources import SOURCES
from flare_dist.errors import check_least
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
    num_classes: int | None
    mean: Tensor  # float32 [C], in raw pixel units; [0] if inputs stay as they are, text among them
    std: Tensor  # float32 [C], in raw pixel units; [0] if inputs stay as they are
    task: Task
    task_name: str
    class_names: tuple[str, ...] = ()  # () = they have none

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return (channels, height, width) of one image, or (length,) of one text."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def blank(self) -> Tensor:
        """Make an input of zeros to try a model on: float32 [1, C, H, W], of text int64 [1, T]."""
        return torch.zeros(1, *self.input_shape, dtype=torch.int64 if self.train.is_text else torch.float32)


def load(config: DataConfig, seed: int, task_name: str = AUTO, source: Source | None = None) -> DataSplits:
    """Read the data set of `config`, or take `source`; `seed` decides what is held out and what is drawn.

    The task is the data's natural one, unless `task_name` names another. Raises ValueError that names `data.root` if
    files are missing or damaged, and `data.name` if the task cannot learn from these examples.
    """
    where = f"data.name: {config.name}" if source is None else "data"
    source = SOURCES[config.name](config, seed) if source is None else source
    task_name = source.task if task_name == AUTO else task_name
    task = find_task(task_name)
    train = open_part(source.train, f"{where}: train")
    test = open_part(source.test, f"{where}: test")
    validation = None if source.validation is None else open_part(source.validation, f"{where}: validation")
    num_classes = count_classes(source, (train, test), where)
    parts = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
    _check_parts(where, parts, num_classes, source, task_name)
    if config.validation > 0:
        if validation is not None:
            raise ValueError(f"data.validation: the data have a validation part, got {config.validation}; leave it out")
        train, validation = hold_out(train, config.validation, generator(seed, "validation"))
    mean = std = torch.empty(0)
    refuse(EXCLUSIONS, data=config, is_text=train.is_text, is_dataset=train.as_is)
    if not (train.is_text or train.as_is):
        mean, std = NORMALIZATIONS[config.normalize](train, source)
    names = () if source.classes is None or isinstance(source.classes, int) else tuple(source.classes)
    return DataSplits(train, validation, test, num_classes, mean, std, task, task_name, names)


def count_classes(source: Source, parts: Iterable[Examples], where: str) -> int | None:
    """Count the classes, from the labels if the source leaves it open; of numbers, how many an example has."""
    if isinstance(source.classes, int):
        check_least(f"{where}: classes", source.classes, 1)
        return source.classes
    if source.classes is not None:
        return len(source.classes)
    found = []
    for part in parts:
        labels = part.labels
        if labels.is_floating_point():
            found.append(labels.shape[1] if labels.dim() == 2 else 1)
        elif labels.numel():
            found.append(int(labels.max()) + 1)
    return max(found, default=None)


def _check_parts(
    where: str, parts: Mapping[str, Examples], num_classes: int | None, source: Source, task_name: str
) -> None:
    another = f" (task.name={task_name})" if task_name != source.task else ""
    for part, examples in parts.items():
        try:
            check_examples(examples, num_classes, find_task(task_name))
        except ValueError as error:
            raise ValueError(f"{where}: {part}: {error}{another}") from error
    shape = tuple(parts["train"].inputs.shape[1:])
    for part, examples in parts.items():
        own = tuple(examples.inputs.shape[1:])
        if own != shape:
            raise ValueError(f"{where}: {part}: inputs must have the shape {shape} of train, got {own}")
