"""Who holds what: counts and shares of each client, with the names of classes and groups."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from flare_dist import Part, Source
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import DataSplits, load
from flare_dist.data.holdings import as_markdown, holdings, in_words, rows, write_csv
from flare_dist.data.partition import Partition
from flare_dist.tasks.config import TaskConfig

LABELS = torch.tensor([0, 0, 1, 1, 1, 0])
TABLE = TensorDataset(torch.zeros(6, 2), LABELS)
PARTS = Partition(torch.tensor([0, 1, 2, 3, 4, 5]), [3, 2, 1])
GROUPS = ["oslo", "oslo", "bern", "bern", "bern", "a|b"]


def data(groups: list[str] | None = None, classes: list[str] | int | None = None, **options: float) -> DataSplits:
    source = Source(Part(TABLE, groups=groups), TABLE, classes=classes)
    return load(DataConfig(**options), 0, source=source)  # type: ignore[arg-type]


def test_counts_and_shares_of_each_client() -> None:
    held = holdings(PARTS, data())
    assert held.counts.tolist() == [[2, 1], [0, 2], [1, 0]]
    assert held.shares.dtype == torch.float64
    assert held.shares.tolist() == [[2 / 3, 1 / 3], [0, 1], [1, 0]]
    assert held.examples == [3, 2, 1]
    assert held.counted == "examples"
    assert held._replace(examples=[1, 1, 1]).counted == "labels"  # as of pixels or tokens


def test_the_table_names_classes_and_the_groups_of_each_client() -> None:
    assert rows(holdings(PARTS, data(GROUPS, ["cat", "dog"]))) == [
        ["client", "group", "cat", "dog", "examples"],
        ["0", "bern, oslo", "2 (67 %)", "1 (33 %)", "3"],
        ["1", "bern", "0", "2 (100 %)", "2"],
        ["2", "a|b", "1 (100 %)", "0", "1"],
    ]


def test_without_names_there_are_numbers() -> None:
    head, first, *_ = rows(holdings(PARTS, data()))
    assert head == ["client", "0", "1", "examples"]
    assert first == ["0", "2 (67 %)", "1 (33 %)", "3"]


def test_markdown_lists_the_first_clients() -> None:
    lines = as_markdown(holdings(PARTS, data(GROUPS, ["cat", "dog"]), most=2)).splitlines()
    assert lines[0] == "| client | group | cat | dog | examples |"
    assert lines[2] == "| 0 | bern, oslo | 2 (67 %) | 1 (33 %) | 3 |"
    assert lines[3:] == ["| 1 | bern | 0 | 2 (100 %) | 2 |", "", "and 1 more clients"]
    assert as_markdown(holdings(PARTS, data(GROUPS))).splitlines()[-1] == r"| 2 | a\|b | 1 (100 %) | 0 | 1 |"


def test_a_table_of_many_classes_counts_them_and_names_those_held_most() -> None:
    held = holdings(PARTS, data(GROUPS, 1000))
    head, first, second, _ = rows(held)
    assert head == ["client", "group", "classes", "most of", "examples"]
    assert first == ["0", "bern, oslo", "2", "0: 2 (67 %), 1: 1 (33 %)", "3"]
    assert second == ["1", "bern", "1", "1: 2 (100 %)", "2"]
    assert as_markdown(held).splitlines()[0] == "| client | group | classes | most of | examples |"
    names = [*"abcdefghijklmnopqrstuvwxyz"]
    assert rows(holdings(PARTS, data(classes=names)))[0] == ["client", *names, "examples"]


def test_the_file_has_every_class(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "partition.csv", holdings(PARTS, data(GROUPS, 1000)))
    with path.open(newline="") as file:
        first, *_ = csv.DictReader(file)
    assert len(first) == 1003
    shown = {"client": "0", "group": "bern, oslo", "examples": "3", "0": "2", "1": "1", "999": "0"}
    assert shown.items() <= first.items()
    with pytest.raises(ValueError, match="output_dir: cannot write"):
        write_csv(tmp_path / "none/partition.csv", holdings(PARTS, data()))


def test_numbers_have_no_classes() -> None:
    part = TensorDataset(torch.zeros(6, 2), torch.linspace(0, 1, 6)[:, None])
    splits = load(DataConfig(), 0, TaskConfig("regression"), Source(part, part))
    assert rows(holdings(PARTS, splits))[1] == ["0", "3 (100 %)", "3"]


def test_a_line_describes_the_data() -> None:
    assert in_words(data()) == "6 training and 6 test examples"
    named = data(GROUPS, ["cat", "dog"], validation=0.2)
    assert in_words(named).startswith("5 training, 1 validation and 6 test examples; 2 classes: cat, dog; ")
    assert in_words(data(GROUPS), 3).endswith("; 3 groups: a|b, bern, oslo; 3 clients")
