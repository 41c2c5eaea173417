"""Batches of a Dataset: in the order of resident tensors, the same with any number of workers, errors by name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from flare_dist import Source
from flare_dist.data.batches import BatchSource
from flare_dist.data.datasets import load
from flare_dist.data.lazy import LazyBatches
from flare_dist.data.reader import ExampleError
from flare_dist.seeding import generator, states_outside_torch
from tests.helpers.lazy import AsDict, Jittered, config, same, source

CPU = torch.device("cpu")

INDICES = torch.arange(3, 40)


def batches(given: Source, workers: int = 0, on_error: str = "stop") -> LazyBatches:
    splits = load(config(workers=workers, on_error=on_error).data, 7, source=given)
    found = splits.batches(splits.train, CPU)
    assert isinstance(found, LazyBatches)
    return found


def two_epochs(used: LazyBatches, steps: int | None = None) -> list[Any]:
    draws = repeat((INDICES, generator(7, "shuffle", 2, 1)), 2)
    return list(used.passes(draws, 8, 2, steps))


def test_batches_are_the_same_with_any_number_of_workers_and_when_drawn_again() -> None:
    alone = batches(source())
    expected = two_epochs(alone)
    assert [len(labels) for _, labels in expected] == [8, 8, 8, 8, 5] * 2
    assert not same(expected[0], expected[5])
    assert same(two_epochs(alone), expected)
    helped = batches(source(), workers=2)
    assert same(two_epochs(helped), expected)
    assert same(two_epochs(helped, steps=3), expected[:3])
    assert same(two_epochs(helped), expected), "a pass that was broken off leaves nothing behind"


def test_the_order_is_that_of_resident_tensors() -> None:
    still = Jittered(draws=False)
    splits = load(config().data, 7, source=Source(TensorDataset(still.images, still.labels), still))
    resident = splits.batches(splits.train, CPU)
    assert isinstance(resident, BatchSource)
    draws = repeat((INDICES, generator(7, "shuffle", 2, 1)), 2)
    lazily = two_epochs(batches(source(draws=False)))
    assert same(list(resident.passes(draws, 8, 2)), lazily)


def test_an_example_draws_the_same_in_whichever_batch_it_is_read_and_anew_in_each_epoch() -> None:
    def by_label(size: int) -> list[Tensor]:
        epoch = list(batches(source()).batches(INDICES, size, generator(7, "shuffle")))
        return [image for images, _ in epoch for image in images]

    assert same(by_label(8), by_label(11))
    used = batches(source())
    draws = generator(7, "shuffle")
    first = torch.cat([images for images, _ in used.batches(INDICES, 37, draws)])
    second = torch.cat([images for images, _ in used.batches(INDICES, 37, draws)])
    assert not set(first.flatten().tolist()) & set(second.flatten().tolist())


def test_the_callers_generators_are_left_alone() -> None:
    """Dropout would otherwise depend on the number of workers."""
    used = batches(source())
    states = torch.random.get_rng_state(), states_outside_torch()
    two_epochs(used)
    after = torch.random.get_rng_state(), states_outside_torch()
    assert torch.equal(states[0], after[0])
    assert states[1] == after[1]


def test_evaluation_draws_the_same_every_time() -> None:
    used = batches(source())
    assert same(list(used.batches(None, 10, None)), list(used.batches(None, 10, None)))


def test_dicts_are_stacked_by_key() -> None:
    found = next(iter(batches(source(AsDict)).batches(None, 3, None)))
    assert {key: tuple(value.shape) for key, value in found.items()} == {"image": (3, 1, 6, 6), "label": (3,)}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_example_that_cannot_be_read_ends_the_run_by_its_index_and_group(workers: int) -> None:
    used = batches(source(groups=True, broken=(33,)), workers)
    said = (
        r"^data: train: example 33 \(group site 3\) cannot be read: OSError: image 33 is truncated \(.*lazy\.py, line"
    )
    with pytest.raises(ExampleError, match=said):
        two_epochs(used)


@pytest.mark.parametrize("workers", [0, 1])
def test_or_it_is_left_out_and_counted(workers: int) -> None:
    used = batches(source(groups=True, broken=(33, 34)), workers, on_error="skip")
    whole = two_epochs(batches(source(groups=True)))
    found = two_epochs(used)
    assert sum(len(labels) for _, labels in found) == 2 * (len(INDICES) - 2)
    kept = {image.sum().item() for images, _ in found for image in images}
    assert kept <= {image.sum().item() for images, _ in whole for image in images}, "the others draw as before"
    count, said = used.take_skipped()
    assert count == 4
    assert sorted(line.split(" cannot")[0] for line in said) == [
        "data: train: example 33 (group site 3)",
        "data: train: example 34 (group site 4)",
    ]
    two_epochs(used)
    assert used.take_skipped() == (4, [])


def test_a_batch_with_too_few_examples_is_left_out_and_a_rank_that_must_step_says_so() -> None:
    used = batches(source(broken=(33, 34)), on_error="skip")
    three = torch.tensor([33, 34, 35])
    assert list(used.passes([(three, generator(0, "shuffle"))], 3, smallest=2)) == []
    assert len(list(used.passes([(three, None)], 3))) == 1
    with pytest.raises(
        ExampleError, match=r"^data\.on_error: skip leaves nothing of a batch; data: train: example 3[34] "
    ):
        list(used.each([(three[:2], None)]))


def test_endless_passes_end_with_the_steps() -> None:
    def forever() -> Iterator[tuple[Tensor, torch.Generator]]:
        yield from repeat((INDICES[:4], generator(0, "shuffle")))

    assert len(list(batches(source()).passes(forever(), 2, steps=7))) == 7
