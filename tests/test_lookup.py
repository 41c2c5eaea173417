"""Data sets and partitions of the user's: what they are given, and what they must return."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flare_dist.data.config import DataConfig
from flare_dist.data.lookup import read_source
from flare_dist.data.partition import partition
from flare_dist.data.parts import open_part
from flare_dist.data.source import Part
from flare_dist.data.sources import Source
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.partitions import CLASSES, examples

HERE = "tests.test_lookup"


def striped(labels: np.ndarray, groups: np.ndarray | None, num_clients: int, rng: Any, step: int = 1) -> np.ndarray:
    assert isinstance(labels, np.ndarray)
    assert groups is None or len(groups) == len(labels)
    return np.arange(len(labels)) // step % num_clients


def fixed(labels: np.ndarray, groups: Any, num_clients: int, rng: Any, *, kind: str) -> Any:
    n = len(labels)
    wrong = {
        "short": np.zeros(n - 1, np.int64),
        "floats": np.zeros(n),
        "high": np.full(n, num_clients),
        "low": np.full(n, -2),
        "empty": np.zeros(n, np.int64),
        "lists": [[1], [1, 2]],
        "nobody": np.full(n, -1),
    }
    return wrong[kind]


def divided(**settings: Any) -> list[torch.Tensor]:
    return list(partition(DataConfig(**settings), examples(60), CLASSIFICATION, CLASSES, 3, 0))


def test_the_user_s_partition_gives_each_example_its_client() -> None:
    parts = divided(partition=f"{HERE}:striped", partition_options={"step": 2})
    assert [part.tolist()[:4] for part in parts] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_examples_without_a_class_each_may_be_divided_by_it() -> None:
    config = DataConfig(partition=f"{HERE}:striped")
    numbers = replace(examples(60), labels=torch.zeros(60, 2))
    assert len(partition(config, numbers, CLASSIFICATION._replace(class_of=None), 2, 3, 0)) == 3


def by_groups(labels: Any, groups: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
    assert labels is None
    return groups % num_clients


@pytest.mark.parametrize("is_by_groups", [True, False])
def test_a_partition_of_the_user_s_need_not_look_at_labels(is_by_groups: bool) -> None:
    """Nobody knows the classes of these without reading them."""
    items = open_part(Part([(torch.zeros(2), 1)] * 6, groups=[0, 1, 2] * 2), "data: train")
    if is_by_groups:
        own = DataConfig(partition=f"{HERE}:by_groups")
        parts = partition(own, items, CLASSIFICATION, 2, 3, 0)
        assert [part.tolist() for part in parts] == [[0, 3], [1, 4], [2, 5]]
        return
    with pytest.raises(
        ValueError, match=r"^data\.partition: .*:striped fails: .*; its labels are None, .*labels=\.\.\.\)$"
    ):
        partition(DataConfig(partition=f"{HERE}:striped"), items, CLASSIFICATION, 2, 3, 0)


def of_task(config: Any, seed: int, task: str) -> Source:
    return Source(examples(60), examples(20), classes=seed, task=task)


def test_the_user_s_data_are_given_the_task_if_they_ask_for_it() -> None:
    config = DataConfig(name=f"{HERE}:of_task")
    assert read_source(config, 7, "segmentation").task == "segmentation"
    with pytest.raises(
        ValueError, match=r"^data\.options\.task: .*:of_task is given it already, got 'a'; leave it out"
    ):
        DataConfig(name=f"{HERE}:of_task", options={"task": "a"})


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("short", r"must return the client of each example, .*, in an array of shape \(60,\), got int64 \(59,\); for"),
        ("floats", r"must return the client of each example, .*, got float64 \(60,\); for example rng\.permutation"),
        ("high", r"must return the client of each example, a whole number from -1 to 2, got 3; for example"),
        ("low", r"must return the client of each example, a whole number from -1 to 2, got -2; for example"),
        ("empty", r"must give each of 3 clients an example, got none for client 1; choose fewer clients"),
        ("nobody", r"must give each of 3 clients an example, got none for client 0"),
        ("lists", r"fails: .*inhomogeneous"),
    ],
)
def test_a_wrong_partition_is_told_with_the_key(kind: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.partition: {HERE}:fixed {problem}"):
        divided(partition=f"{HERE}:fixed", partition_options={"kind": kind})


def data(config: Any, seed: int, *, result: Any = None, root: str = "") -> Any:
    if root != config.root:
        raise FileNotFoundError(config.root)
    return Source(examples(60), examples(20), classes=seed) if result == "source" else result


def test_the_user_s_data_see_the_configuration_the_seed_and_their_options() -> None:
    config = DataConfig(name=f"{HERE}:data", root="here", options={"result": "source", "root": "here"})
    assert read_source(config, 7).classes == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"result": [1]},
            r"data\.name: .*:data must return a flare_dist\.Source, got list; for example flare_dist\.Source\(",
        ),
        ({"root": "there"}, r"data\.name: .*:data fails: FileNotFoundError: here \(.*test_lookup\.py, line \d+\)$"),
    ],
)
def test_wrong_data_are_told_with_the_key(options: dict[str, Any], message: str) -> None:
    read = partial(read_source, DataConfig(name=f"{HERE}:data", root="here", options={"root": "here"} | options), 0)
    with pytest.raises(ValueError, match=f"^{message}"):
        read()


def test_built_in_ones_take_no_options() -> None:
    with pytest.raises(ValueError, match=r"^data\.options\.classes: mnist takes no such option, got 3; leave it out"):
        DataConfig(name="mnist", options={"classes": 3})
    with pytest.raises(ValueError, match=r"^data\.partition_options\.alpha: dirichlet takes no such option, got 1"):
        DataConfig(partition="dirichlet", partition_options={"alpha": 1})


def in_place(labels: np.ndarray, groups: Any, num_clients: int, rng: np.random.Generator) -> np.ndarray:
    labels[:] = rng.integers(num_clients, size=len(labels))
    labels[:num_clients] = np.arange(num_clients)
    return labels


def test_a_partition_may_write_into_the_labels_that_it_is_given() -> None:
    held = examples(60)
    before = held.labels.clone()
    partition(DataConfig(partition=f"{HERE}:in_place"), held, CLASSIFICATION, CLASSES, 3, 0)
    assert torch.equal(held.labels, before)
