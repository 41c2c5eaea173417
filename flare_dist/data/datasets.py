"""The data of a run: a source, cut into train, validation and test, with the statistics that normalise images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flare_dist.compatibility import EXCLUSIONS
from flare_dist.data.batches import Batches, BatchSource, first_batch
from flare_dist.data.config import DataConfig
from flare_dist.data.examine import Found, examine, reader_for, warn_of_untested
from flare_dist.data.examples import Examples, hold_out
from flare_dist.data.few import Few
from flare_dist.data.items import Items
from flare_dist.data.lazy import LazyBatches
from flare_dist.data.lookup import read_source
from flare_dist.data.normalization import NORMALIZATIONS
from flare_dist.data.parts import open_parts
from flare_dist.data.source import Source
from flare_dist.exclusion import refuse
from flare_dist.seeding import generator
from flare_dist.tasks.batch import Blank
from flare_dist.tasks.build_task import build_task
from flare_dist.tasks.config import AUTO, TaskConfig, find_task
from flare_dist.tasks.task import Batch, Shape, Task
from flare_dist.vocabulary import Vocabulary

# `Examples` in memory, or `Items` of a Dataset, which have length, groups and strata in common.
Held = Any


class Reading(NamedTuple):
    """How a Dataset is read: the processes that read ahead, what an error does, and the seed of evaluations."""

    workers: int
    on_error: str
    seed: int


@dataclass(frozen=True)
class DataSplits:
    """Hold the parts on which a run trains, is tuned and is tested; batches of images are (x - mean) / std."""

    train: Held
    validation: Held | None
    test: Held
    found: Found  # classes, and the first examples of what is read lazily
    mean: Tensor  # float32 [C], in raw pixel units; [0] if inputs stay as they are, text among them
    std: Tensor  # float32 [C], in raw pixel units; [0] if inputs stay as they are
    task: Task
    task_name: str
    reading: Reading
    white: float = 255.0  # the largest pixel value
    vocabulary: Vocabulary | None = None  # of text

    @property
    def num_classes(self) -> int | None:
        """Return how many classes there are, or numbers of an example; None if that is not known."""
        return self.found.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes; () if they have none."""
        return self.found.class_names

    @property
    def is_resident(self) -> bool:
        """Tell whether the training examples are in memory, which the fast paths need."""
        return isinstance(self.train, Examples)

    @property
    def input_shape(self) -> Shape | None:
        """Return the shape of one input, (channels, height, width) of images; None if inputs have none in common."""
        return tuple(self.train.inputs.shape[1:]) if isinstance(self.train, Examples) else self._few.shape

    @property
    def blank(self) -> Blank:
        """Make an input of zeros to try a model on, [1, ...]; of what is not one tensor, a function for batches."""
        if isinstance(self.train, Examples):
            dtype = torch.int64 if self.train.is_text else torch.float32
            return torch.zeros(1, *self.train.inputs.shape[1:], dtype=dtype)
        return self._few.blank(self.task)

    def sample(self, examples: int) -> Batch:
        """Make a batch of a few training examples on the CPU."""
        if isinstance(self.train, Examples):
            return first_batch(self.train, self.mean, self.std, examples)
        return self._few(examples)

    def batches(self, part: Examples | Items, device: torch.device, augment: str = "none") -> Batches:
        """Make the batches of one of the parts: resident on the device, or read while the run goes on."""
        if isinstance(part, Items):
            reader = reader_for(part, self.reading.on_error, self.num_classes, self.task)
            return LazyBatches(reader, device, self.reading.workers, self.reading.seed)
        outside = self.task.ignored if self.task.class_of == "pixel" else None
        return BatchSource(part, self.mean, self.std, device, augment, outside)

    @property
    def _few(self) -> Few:
        return self.found.few["train"]


def load(config: DataConfig, seed: int, asked: TaskConfig | None = None, source: Source | None = None) -> DataSplits:
    """Read the data set of `config`, or take `source`; `seed` decides what is held out and what is drawn.

    The task is the data's natural one, unless `asked` names another. Raises ValueError that names `data.root` if files
    are missing or damaged, `data.name` if the task cannot learn from these examples, and a key of the task if it cannot
    be had with these data.
    """
    where = f"data.name: {config.name}" if source is None else "data"
    asked = asked or TaskConfig()
    source = read_source(config, seed, asked.name) if source is None else source
    task_name = source.task if asked.name == AUTO else asked.name
    parts = open_parts(source, where)
    hint = f" (task.name={task_name})" if task_name != source.task else ""
    natural = find_task(task_name, asked.options)
    found = examine(parts, source, where, natural, config.on_error, hint)
    if config.partition == "natural":
        warn_of_untested(parts["train"], parts["test"])
    train, validation = _held_out(config, parts, seed)
    is_text = isinstance(train, Examples) and train.is_text
    is_dataset = not isinstance(train, Examples) or train.as_is
    refuse(EXCLUSIONS, data=config, is_text=is_text, is_dataset=is_dataset)
    task = build_task(asked, task_name, _labels(parts["train"], natural), found.num_classes or 0)
    mean = std = torch.empty(0)
    if isinstance(train, Examples) and not (is_text or is_dataset):
        mean, std = NORMALIZATIONS[config.normalize](train, source)
    reading = Reading(config.workers, config.on_error, seed)
    held_out = parts["test"]
    return DataSplits(
        train, validation, held_out, found, mean, std, task, task_name, reading, source.white, source.vocabulary
    )


def _labels(train: Examples | Items, task: Task) -> Tensor | None:
    """Return all labels that training learns from; None if they are inside of what is read lazily."""
    if isinstance(train, Examples):
        return train.labels
    return train.strata if task.class_of == "example" else None


def _held_out(
    config: DataConfig, parts: Mapping[str, Examples | Items], seed: int
) -> tuple[Examples | Items, Examples | Items | None]:
    """Return what is trained on and what is held out for tuning, if anything."""
    if not config.validation:
        return parts["train"], parts.get("validation")
    if "validation" in parts:
        raise ValueError(f"data.validation: the data have a validation part, got {config.validation}; leave it out")
    return hold_out(parts["train"], config.validation, generator(seed, "validation"))
