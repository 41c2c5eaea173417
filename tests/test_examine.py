"""What is found out of a data set before a run, and what is refused then in one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from flare_dist import Part, Source
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import DataSplits, load
from flare_dist.data.examine import examine
from flare_dist.data.partition import partition
from flare_dist.data.parts import open_parts
from flare_dist.rounds.build_run import load_parts
from flare_dist.tasks.builtin import CLASSIFICATION
from flare_dist.tasks.config import TaskConfig
from flare_dist.tasks.evaluation_config import EvaluationConfig
from tests.helpers.lazy import AsDict, Jittered, config, source


def loaded(given: Source, task: str = "auto", **values: Any) -> DataSplits:
    return load(DataConfig(**values), 0, TaskConfig(task), given)


class Without(Jittered):
    """Labels are not known without reading."""

    def __init__(self, examples: int = 64, **settings: Any) -> None:
        super().__init__(examples, **settings)
        self.hidden = self.labels

    def __getitem__(self, index: int) -> Any:
        return self.images[index], int(self.hidden[index])


def test_shape_and_classes_are_found() -> None:
    found = loaded(source(AsDict))
    assert found.input_shape == (1, 6, 6)
    assert found.num_classes == 4
    assert found.class_names == ("a", "b", "c", "d")
    assert not found.is_resident
    assert torch.equal(found.blank, torch.zeros(1, 1, 6, 6))  # type: ignore[arg-type]


def test_classes_that_nobody_knows_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^data: the number of classes is not known; give Source\(\.\.\., classes="):
        loaded(Source(Without(), Without(24)))
    known = Part(Without(), labels=Without().labels)
    assert loaded(Source(known, Without(24))).num_classes == 4


def test_labels_out_of_range_are_named_before_training() -> None:
    """By what is known of them without reading, and by what is read of the first ones."""
    with pytest.raises(
        ValueError, match=r"^data: train: example 2 \(group site 2\): labels must be classes 0 to 1, got 2$"
    ):
        loaded(dataclasses.replace(source(groups=True), classes=2))
    with pytest.raises(ValueError, match=r"^data: train: example 63: labels must be classes 0 to 1, got 3$"):
        loaded(Source(Without(), Without(24), classes=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": 2.5}, r"classes must be names or how many there are, got float; give a list"),
        ({"classes": "names.txt"}, r"classes must be names or how many there are, got str; give a list"),
        ({"classes": torch.tensor(4)}, r"classes must be names or how many there are, got Tensor"),
        ({"classes": ["a", "b", "a", "c"]}, r"classes must have a name each, got 'a' twice; rename one"),
        ({"classes": 4, "vocabulary": 9}, r"vocabulary must be a flare_dist\.Vocabulary, got int"),
    ],
)
def test_fields_of_another_kind_are_told(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^data: {message}"):
        loaded(Source(Jittered(), Jittered(), **fields))


@pytest.mark.parametrize("label", ["cat", ["cat", "dog"]])
def test_labels_that_are_no_tensor_are_told_before_training(label: Any) -> None:
    examples = [(torch.zeros(4), label)] * 6
    with pytest.raises(
        ValueError, match=r"^data: train: labels must be a number for each example, .* got a (list|tuple)"
    ):
        loaded(Source(examples, examples, classes=2))


def test_a_partition_by_labels_needs_them() -> None:
    found = loaded(Source(Without(), Without(24), classes=4), partition="dirichlet")
    config = DataConfig(partition="dirichlet")
    said = r"^data\.partition: this partition divides by the class of each example, got dirichlet and data: train w"
    with pytest.raises(ValueError, match=said):
        partition(config, found.train, found.task, found.num_classes, 4, 0)
    natural = DataConfig(partition="natural")
    with pytest.raises(ValueError, match=r"^data\.partition: natural needs groups"):
        partition(natural, found.train, found.task, found.num_classes, 4, 0)
    assert len(partition(DataConfig(), found.train, found.task, found.num_classes, 4, 0)) == 4


def test_labels_of_a_part_divide_what_has_no_classes() -> None:
    """Multi-label targets, dealt out by a class that the user gives."""
    targets = torch.eye(4)[torch.arange(64) % 4]
    several = TensorDataset(Jittered().images, targets)
    found = loaded(Source(Part(several, labels=torch.arange(64) % 4), several), task="regression")
    assert found.num_classes == 4
    parts = partition(DataConfig(partition="shards", shards_per_client=1), found.train, found.task, 4, 4, 0)
    assert [len(targets[part].argmax(1).unique()) for part in parts] == [1] * 4


def test_groups_that_are_not_tested_are_named(caplog: pytest.LogCaptureFixture) -> None:
    train = Part(Jittered(), groups=[f"site {number % 5}" for number in range(64)])
    test = Part(Jittered(24), groups=["site 1", "site 3", "another"] * 8)
    given = Source(train, test, classes=4)
    loaded(given)
    assert not caplog.messages
    loaded(given, partition="natural")
    assert caplog.messages == ["data: test has no example of 3 groups of train: site 0, site 2, site 4"]


def test_groups_that_are_not_tested_are_named_if_groups_are_measured(caplog: pytest.LogCaptureFixture) -> None:
    train = Part(Jittered(), groups=[f"site {number % 5}" for number in range(64)])
    given = Source(train, Part(Jittered(24), groups=["site 1", "site 3"] * 12), classes=4)
    by_group = dataclasses.replace(config(partition="iid"), evaluation=EvaluationConfig(by_group=True))
    for measured in (config(partition="iid"), by_group):
        assert not caplog.messages
        load_parts(measured, given)
    assert caplog.messages == ["data: test has no example of 3 groups of train: site 0, site 2, site 4"]


def test_the_held_out_keep_their_index_and_group() -> None:
    found = loaded(source(groups=True), validation=0.25)
    train, held = found.train, found.validation
    assert held is not None
    assert len(train) == 48
    assert len(held) == 16
    assert sorted([*train.chosen.tolist(), *held.chosen.tolist()]) == list(range(64))
    for part in (train, held):
        assert all(part.name(n) == f"example {i} (group site {i % 5})" for n, i in enumerate(part.chosen.tolist()))
        assert all(int(part.strata[n]) == i % 4 for n, i in enumerate(part.chosen.tolist()))


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (Jittered(24, broken=tuple(range(24))), r"data: test: example 0 cannot be read: OSError: image 0 is truncated"),
        (Jittered(0), r"data: test: there are no examples"),
        (
            TensorDataset(torch.zeros(4, 1, 5, 5), torch.arange(4)),
            r"data: test: inputs must have the shape \(1, 6, 6\)",
        ),
    ],
)
def test_a_test_part_that_cannot_serve_is_refused(test: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        loaded(Source(Jittered(), test, classes=4))


def test_a_dataset_is_not_augmented() -> None:
    with pytest.raises(ValueError, match=r"^data\.augment: a Dataset is taken as it is, got crop with is_dataset=true"):
        loaded(source(), augment="crop")


@pytest.mark.parametrize("kind", ["resident", "lazy"])
def test_a_check_of_labels_that_fails_itself_is_told_with_its_place(kind: str) -> None:
    def check(labels: Any, shape: Any, classes: int) -> None:
        raise KeyError("labels")

    tensors = TensorDataset(torch.zeros(8, 3), torch.arange(8) % 2)
    part: Any = tensors if kind == "resident" else [tensors[index] for index in range(8)]
    given = Source(part, part, classes=2)
    task = CLASSIFICATION._replace(check_labels=check)
    with pytest.raises(ValueError, match=r"^task\.name: check_labels fails: KeyError: 'labels' \(.*test_examine\.py"):
        examine(open_parts(given, "data"), given, "data", task, "stop", "")


def test_the_wrong_task_is_told_with_its_name() -> None:
    with pytest.raises(
        ValueError, match=r"^data: train: labels must be float32 \[4, 4\], got int64 \[4\] \(task\.name="
    ):
        loaded(source(), task="regression")
