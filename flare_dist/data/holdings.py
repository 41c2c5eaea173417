"""Who holds what: the examples of each client by class, with the names of classes and groups."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from flare_dist.data.datasets import DataSplits, Held
from flare_dist.data.names import some
from flare_dist.data.partition import Partition, counted_classes, label_table
from flare_dist.errors import printable
from flare_dist.units import counted

CARD_CLIENTS = 100  # that a text of TensorBoard lists
NAMED_CLASSES = 26  # with more a table has no column for each class
_MOST_HELD = 3  # classes that it names instead


class Holdings(NamedTuple):
    """The examples of clients 0, 1, … by class."""

    groups: list[str]  # those of each client by name, "" if the data have none
    classes: list[str]
    counts: Tensor  # int64 [clients, classes], of tokens or pixels if these have classes
    examples: list[int]
    clients: int  # all that there are, of whom the first may be listed alone

    @property
    def counted(self) -> str:
        """Name what is counted: examples, or the labels of which each may have several."""
        return "examples" if self.counts.sum(1).tolist() == self.examples else "labels"

    @property
    def shares(self) -> Tensor:
        """Return the share of each class in what a client holds: float64 [clients, classes], adding up to 1."""
        return self.counts.double() / self.counts.sum(1, keepdim=True).clamp_min(1)


def holdings(parts: Partition, data: DataSplits, most: int | None = None) -> Holdings:
    """Count what the first `most` clients hold; None = all of them."""
    own = list(itertools.islice(parts, most))
    labels, num_classes = counted_classes(data.train, data.num_classes)
    names = [*map(printable, data.class_names), *map(str, range(len(data.class_names), num_classes))]
    counts = label_table(own, labels, num_classes)
    return Holdings(client_groups(own, data.train), names, counts, list(map(len, own)), len(parts))


def client_groups(parts: list[Tensor], train: Held) -> list[str]:
    """List the names of the groups of each client's examples, as in "oslo" or "bern, oslo"; "" if they have none."""
    if train.groups is None or not train.group_names:
        return [""] * len(parts)
    return [some(str(train.group_names[group]) for group in train.groups[part].unique().tolist()) for part in parts]


def in_words(data: DataSplits, clients: int = 0) -> str:
    """Describe a data set in a line: how many examples, which classes and groups by name, among how many clients."""
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    words = [f"{len(part)} {name}" for name, part in parts.items() if part is not None]
    lines = [f"{', '.join(words[:-1])} and {words[-1]} examples"]
    if data.class_names:
        lines.append(f"{counted(len(data.class_names), 'class', 'classes')}: {some(data.class_names)}")
    if data.train.group_names:
        present = [str(data.train.group_names[group]) for group in data.train.groups.unique().tolist()]
        lines.append(f"{counted(len(present), 'group')}: {some(present)}")
    return "; ".join([*lines, *([counted(clients, "client")] if clients else [])])


def with_share(count: int, share: float) -> str:
    """Write a count and the share that it is, as in "12 (40 %)"."""
    return f"{count} ({100 * share:.0f} %)" if count else "0"


def rows(held: Holdings) -> list[list[str]]:
    """Write a table: the heading, then a line for each client with its groups, its classes and its examples.

    Of many classes it has how many a client holds, and those that it holds most of.
    """
    has_groups = any(held.groups)
    has_few = len(held.classes) <= NAMED_CLASSES
    shares = held.shares.tolist()
    titles = held.classes if has_few else ["classes", "most of"]
    lines = [["client", *(["group"] if has_groups else []), *titles, "examples"]]
    for client, (counts, own) in enumerate(zip(held.counts.tolist(), shares)):
        cells = list(map(with_share, counts, own)) if has_few else _in_short(held.classes, counts, own)
        lines.append([str(client), *held.groups[client : client + has_groups], *cells, str(held.examples[client])])
    return lines


def _in_short(classes: Sequence[str], counts: Sequence[int], shares: Sequence[float]) -> list[str]:
    """Count the classes that a client holds, and name those that it holds most of."""
    held = sorted((place for place, count in enumerate(counts) if count), key=lambda place: -counts[place])
    most = [f"{classes[place]}: {with_share(counts[place], shares[place])}" for place in held[:_MOST_HELD]]
    return [str(len(held)), ", ".join(most)]


def write_csv(path: Path, held: Holdings) -> Path:
    """Write a line for each client with the count of every class; ValueError if the file cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["client", "group", "examples", *held.classes])
            for client, counts in enumerate(held.counts.tolist()):
                writer.writerow([client, held.groups[client], held.examples[client], *counts])
    except OSError as error:
        raise ValueError(f"output_dir: cannot write {path}: {error.strerror}") from error
    return path


def as_markdown(held: Holdings) -> str:
    """Write the table as Markdown, which TensorBoard shows."""
    head, *lines = ([cell.replace("|", r"\|") for cell in line] for line in rows(held))
    listed = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
    left_out = held.clients - len(held.examples)
    return "\n".join([*listed, *(["", f"and {left_out} more clients"] if left_out else [])])
