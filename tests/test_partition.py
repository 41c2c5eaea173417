"""Partitions: one tensor of indices, looked up by client, and refusals that name the key."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from flare_dist.cli import main
from flare_dist.data.config import DataConfig
from flare_dist.data.partition import Partition, hold_out_of_each, label_table, partition
from flare_dist.data.partitioners import PARTITIONERS
from flare_dist.data.sources import SOURCES
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.partitions import CLASSES, examples, split
from tests.helpers.tasks import drawn


@pytest.mark.parametrize("name", PARTITIONERS)
@pytest.mark.parametrize("alpha", [1e-3, 0.5, 1e4])
def test_parts_are_disjoint_in_order_and_not_empty(name: str, alpha: float) -> None:
    parts = split(name, alpha=alpha)
    assert len(parts) == 13
    assert all(part.dtype == torch.int64 and len(part) for part in parts)
    assert all((part.diff() > 0).all() for part in parts)
    assert len(torch.cat(parts).unique()) == sum(map(len, parts))


@pytest.mark.parametrize("name", PARTITIONERS)
def test_the_seed_decides(name: str) -> None:
    first, again, other = split(name), split(name), split(name, seed=1)
    assert all(map(torch.equal, first, again))
    assert all(map(torch.equal, first, other)) == (name == "consecutive")


@pytest.mark.parametrize("name", PARTITIONERS)
@pytest.mark.parametrize("clients", [0, 51])
def test_fewer_examples_than_clients_is_refused(name: str, clients: int) -> None:
    with pytest.raises(ValueError, match=r"^clients\.num: must be in \[1, 50\]"):
        split(name, clients=clients, n=50)


def test_label_table_counts() -> None:
    table = label_table([torch.tensor([0, 1]), torch.tensor([2])], torch.tensor([1, 1, 0]), 3)
    assert table.dtype == torch.int64
    assert table.tolist() == [[0, 2, 0], [1, 0, 0]]


def test_a_client_is_looked_up_as_it_is_listed() -> None:
    parts = partition(DataConfig(partition="quantity", alpha=0.5), examples(), CLASSIFICATION, CLASSES, 13, 0)
    assert list(parts.sizes) == [len(part) for part in parts]
    assert all(torch.equal(parts[client], part) for client, part in enumerate(parts))
    assert parts[0].untyped_storage().data_ptr() == parts[12].untyped_storage().data_ptr()


def test_partitions_by_class_need_one_for_each_example(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "mine", partial(drawn, "regression"))
    arguments = ["--data.name=mine", "--model.name=tests.helpers.tasks:numbers", f"--output_dir={tmp_path}"]
    assert main(["train", *arguments, "--data.partition=dirichlet"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "got dirichlet with data.name=mine and class_of=null; choose from iid, consecutive" in said
    assert main(["partition", *arguments, "--clients.num=3"]) == 0


def test_each_client_holds_out_its_own_examples() -> None:
    parts = Partition(torch.randperm(40, generator=torch.Generator().manual_seed(0)), [20, 1, 2, 17])
    trained = hold_out_of_each(parts, 0.2, seed=3)
    held = trained.held_out
    assert held is not None
    assert list(trained.sizes) == [16, 1, 1, 14]
    assert list(held.sizes) == [4, 0, 1, 3]
    for own, kept, tested in zip(parts, trained, held):
        assert sorted(torch.cat([kept, tested]).tolist()) == sorted(own.tolist())
        places = [own.tolist().index(example) for example in kept.tolist()]
        assert places == sorted(places)
    assert torch.equal(trained.order, hold_out_of_each(parts, 0.2, seed=3).order)
    assert not torch.equal(trained.order, hold_out_of_each(parts, 0.2, seed=4).order)
