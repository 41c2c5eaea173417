"""Checks of the parts of a data set before a run: what a task cannot learn from, told in one line."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from flare_dist.data.examples import Examples, check_examples, check_labels
from flare_dist.data.few import Few
from flare_dist.data.items import Items
from flare_dist.data.known import known_classes
from flare_dist.data.names import some
from flare_dist.data.reader import Reader
from flare_dist.data.source import Source
from flare_dist.errors import check_least
from flare_dist.named import WrongResultError
from flare_dist.tasks.batch import describe, pair
from flare_dist.tasks.task import Shape, Task
from flare_dist.units import counted
from flare_dist.vocabulary import Vocabulary

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """The findings of the checks of a data set before a run."""

    num_classes: int | None
    class_names: tuple[str, ...]
    few: dict[str, Few]  # the first examples of each part that is read lazily


def examine(
    parts: Mapping[str, Examples | Items], source: Source, where: str, task: Task, on_error: str, hint: str
) -> Found:
    """Count the classes and look at the first examples; ValueError if the task cannot learn from them.

    `where` begins the errors of a source, `hint` ends those that another task would not have.
    """
    _check_fields(source, where)
    names = _class_names(source, parts["train"])
    num_classes = _count_classes(source, parts.values(), names, where)
    _check_resident(parts, where, num_classes, task, hint)
    lazy = {name: part for name, part in parts.items() if isinstance(part, Items)}
    for part in lazy.values():
        _check_known(part, num_classes, task)
    few = {name: Few(reader_for(part, on_error, num_classes, task)) for name, part in lazy.items()}
    num_classes = num_classes or next((own.num_labels for own in few.values()), None)
    for own in few.values():
        _check_few(own, where, num_classes, task, hint)
    shapes = {name: tuple(part.inputs.shape[1:]) for name, part in parts.items() if isinstance(part, Examples)}
    _check_shapes(shapes | {name: own.shape for name, own in few.items()}, where)
    return Found(num_classes, names, few)


def reader_for(part: Items, on_error: str, num_classes: int | None, task: Task) -> Reader:
    """Make what reads the examples of a Dataset, and checks their labels if these are classes."""
    return Reader(part, on_error, None if task.class_of is None else num_classes, task.ignored)


def _check_fields(source: Source, where: str) -> None:
    """Raise ValueError if the classes or the vocabulary of a user's Source are of another kind than they must be."""
    classes = source.classes
    if classes is not None and not isinstance(classes, int | np.integer):
        if isinstance(classes, str | Mapping | Tensor) or not isinstance(classes, Iterable):
            kind = type(classes).__name__
            raise ValueError(
                f"{where}: classes must be names or how many there are, got {kind}; give a list, or an int"
            )
        twice = next((name for name, times in Counter(map(str, classes)).items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"{where}: classes must have a name each, got {twice!r} twice; rename one")
    if not isinstance(source.vocabulary, Vocabulary | None):
        kind = type(source.vocabulary).__name__
        raise ValueError(f"{where}: vocabulary must be a flare_dist.Vocabulary, got {kind}; give Vocabulary(size)")


def _class_names(source: Source, train: Examples | Items) -> tuple[str, ...]:
    """Return the names of the classes, those that the training data name if the source does not; () if none."""
    if source.classes is None:
        return known_classes(train.data) if isinstance(train, Items) else ()
    return () if isinstance(source.classes, int | np.integer) else tuple(map(str, source.classes))


def _count_classes(source: Source, parts: Iterable[Examples | Items], names: tuple[str, ...], where: str) -> int | None:
    """Count the classes, from known labels if the source leaves it open; None if these are not known.

    Of numbers, such as regression's, it is how many an example has.
    """
    if isinstance(source.classes, int | np.integer):
        check_least(f"{where}: classes", source.classes, 1)
        return int(source.classes)
    if names:
        return len(names)
    found = []
    for part in parts:
        labels = part.labels if isinstance(part, Examples) else part.strata
        if labels is None:
            continue
        if labels.is_floating_point():
            found.append(labels.shape[1] if labels.dim() == 2 else 1)
        elif labels.numel():
            found.append(int(labels.max()) + 1)
    return max(found, default=None)


def _check_resident(
    parts: Mapping[str, Examples | Items], where: str, num_classes: int | None, task: Task, hint: str
) -> None:
    """Raise ValueError if the task cannot learn from a part in memory."""
    for name, examples in parts.items():
        if not isinstance(examples, Examples):
            continue
        try:
            check_examples(examples, num_classes or 0, task)  # labels in memory tell, unless there are no examples
        except WrongResultError:  # of the task, which it names
            raise
        except ValueError as error:
            raise ValueError(f"{where}: {name}: {error}{hint}") from error


def _check_few(few: Few, where: str, num_classes: int | None, task: Task, hint: str) -> None:
    """Raise ValueError if the task cannot learn from the first examples of a Dataset."""
    if task.class_of is not None and num_classes is None:
        raise ValueError(
            f"{where}: the number of classes is not known; give Source(..., classes=...), their names or how many"
        )
    if task.criterion is None:
        return  # batches are the task's own affair
    inputs, labels = pair(few.batch(few.numbers))
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"{few.items.where}: labels must be a number for each example, or a tensor of one shape, got "
            f"{describe(labels)}; let the Dataset give numbers{hint}"
        )
    is_counted = task.ignored is None or bool((labels != task.ignored).any())
    if isinstance(inputs, Tensor) and is_counted:
        try:
            check_labels(task, labels, tuple(inputs.shape), num_classes or 0)
        except WrongResultError:
            raise
        except ValueError as error:
            raise ValueError(f"{few.items.where}: {error}{hint}") from error


def _check_shapes(shapes: Mapping[str, Shape | None], where: str) -> None:
    """Raise ValueError if inputs of a part have another shape than those of train; None is any shape."""
    trained = shapes.get("train")
    for name, own in shapes.items():
        if own != trained and own is not None and trained is not None:
            raise ValueError(f"{where}: {name}: inputs must have the shape {trained} of train, got {own}")


def warn_of_untested(train: Examples | Items, test: Examples | Items) -> None:
    """Warn of groups that are trained and not tested, if the test examples have groups at all."""
    if train.groups is None or test.groups is None or not (train.group_names and test.group_names):
        return
    tested = {test.group_names[code] for code in test.groups.unique().tolist()}
    untested = [name for code in train.groups.unique().tolist() if (name := train.group_names[code]) not in tested]
    if untested:
        shown = some(map(str, untested))
        log.warning("data: test has no example of %s of train: %s", counted(len(untested), "group"), shown)


def _check_known(items: Items, num_classes: int | None, task: Task) -> None:
    """Raise ValueError that names the first example whose known label is no class of the task."""
    if items.strata is None or num_classes is None or task.class_of != "example":
        return
    if int(items.strata.max()) >= num_classes:
        number = int((items.strata.long() >= num_classes).nonzero()[0])
        label = int(items.strata[number])
        raise ValueError(
            f"{items.where}: {items.name(number)}: labels must be classes 0 to {num_classes - 1}, got {label}"
        )
