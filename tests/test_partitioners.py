"""The laws of every partitioner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flare_dist.data.config import DataConfig
from flare_dist.data.examples import Examples
from flare_dist.data.partition import label_table, partition
from flare_dist.data.partitioners import PARTITIONERS
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.partitions import CLASSES, examples, split

COMPLETE = sorted(set(PARTITIONERS) - {"consecutive"})


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("clients", [1, 13, 40])
def test_every_example_is_used_once(name: str, clients: int) -> None:
    assert torch.equal(torch.cat(split(name, clients)).sort().values, torch.arange(1003))


@pytest.mark.parametrize("name", sorted(set(COMPLETE) - {"natural", "shards"}))
def test_as_many_clients_as_examples_leave_none_empty(name: str) -> None:
    assert [len(part) for part in split(name, clients=50, n=50, alpha=0.01)] == [1] * 50


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
@pytest.mark.parametrize("alpha", [1e-6, 0.1, 1e6])
def test_balanced_sizes_differ_by_at_most_one(name: str, alpha: float) -> None:
    sizes = {len(part) for part in split(name, alpha=alpha)}
    assert max(sizes) - min(sizes) <= 1


def test_consecutive_takes_runs_in_data_order() -> None:
    parts = split("consecutive", clients=4, examples_per_client=50)
    assert torch.equal(torch.cat(parts), torch.arange(200))
    assert [len(part) for part in parts] == [50] * 4
    assert [len(part) for part in split("consecutive", clients=4)] == [250] * 4
    with pytest.raises(ValueError, match=r"^clients\.num: 4 clients of data\.examples_per_client=300 need 1200 "):
        split("consecutive", clients=4, examples_per_client=300)


@pytest.mark.parametrize("name", ["dirichlet", "dirichlet_unbalanced"])
def test_alpha_goes_from_one_class_to_all(name: str) -> None:
    def largest_share(alpha: float) -> float:
        table = label_table(split(name, 20, 20000, alpha=alpha), examples(20000).labels, CLASSES).double()
        return float((table.max(1).values / table.sum(1)).mean())

    assert largest_share(1e-3) > 0.7
    assert largest_share(1e4) < 0.15
    assert largest_share(0.1) > largest_share(1.0) > largest_share(10.0)


def test_dirichlet_follows_its_mixes() -> None:
    """With more than enough examples of each class, mean and variance of the class shares are those of Dir(alpha)."""
    table = label_table(split("dirichlet", 1000, 40000, alpha=1.0), examples(40000).labels, CLASSES).double()
    share = table / table.sum(1, keepdim=True)
    assert float(share.mean()) == pytest.approx(0.1, abs=1e-3)
    variance = 0.1 * 0.9 / 11 + 0.1 * 0.9 / 40  # of Dir(1) and of drawing 40 examples from it, nearly
    assert float(share.var()) == pytest.approx(variance, rel=0.15)


def test_dirichlet_is_uniform_over_the_examples_of_a_class() -> None:
    """Who gets an example does not depend on its place in the data."""
    owners = np.stack([np.argsort(torch.cat(split("dirichlet", 2, 200, seed)).numpy()) < 100 for seed in range(200)])
    assert abs(owners[:, :100].mean() - 0.5) < 0.03


def test_quantity_sizes_follow_alpha() -> None:
    def spread(alpha: float) -> float:
        return float(torch.tensor([float(len(part)) for part in split("quantity", 50, 5000, alpha=alpha)]).std())

    assert spread(0.1) > spread(1.0) > spread(100.0)


def test_shards_bound_the_number_of_classes() -> None:
    n, clients = 1000, 20
    train = Examples(torch.zeros(n, 1, 1, 1), torch.arange(n) % CLASSES)
    parts = partition(DataConfig(partition="shards", shards_per_client=2), train, CLASSIFICATION, CLASSES, clients, 0)
    table = label_table(parts, train.labels, CLASSES)
    assert (table.sum(1) == 50).all()
    assert ((table > 0).sum(1) <= 2).all()
    with pytest.raises(ValueError, match=r"^data\.shards_per_client: "):
        split("shards", clients=40, n=50)


def test_natural_deals_groups_whole() -> None:
    groups = examples().groups
    assert groups is not None
    held = [set(groups[part].tolist()) for part in split("natural", clients=13)]
    assert sum(map(len, held)) == len(set.union(*held)) == 40
    assert {len(each) for each in held} == {3, 4}
    assert all(len(groups[part].unique()) == 1 for part in split("natural", clients=40))


@pytest.mark.parametrize("seed", range(3))
def test_natural_gives_client_i_group_i_if_there_are_as_many(seed: int) -> None:
    groups = examples().groups
    assert groups is not None
    assert [groups[part].unique().tolist() for part in split("natural", clients=40, seed=seed)] == [
        [group] for group in range(40)
    ]


def test_natural_errors_name_the_keys() -> None:
    with pytest.raises(ValueError, match=r"^clients\.num: must be at most 40, "):
        split("natural", clients=41)
    with pytest.raises(ValueError, match=r"^data\.partition: natural needs groups, got data\.name=digits"):
        partition(DataConfig(partition="natural"), examples(groups=None), CLASSIFICATION, CLASSES, 2, 0)
