"""The laws of batches: the examples that an epoch visits, their order and their sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flare_dist.data import batches
from flare_dist.data.augmentation import AUGMENTATIONS
from flare_dist.data.batches import BatchSource, batch_sizes, count_batches, piece_sizes
from flare_dist.data.examples import Examples
from flare_dist.run.evaluation import evaluate
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.batches import MEAN, STD, draws, epoch, normalised, pixel_source


def test_without_generator_in_order_and_unaugmented() -> None:
    data = pixel_source("crop_flip")
    assert len(data) == 53
    inputs, labels = epoch(data, None)
    assert torch.equal(labels, torch.arange(53))
    assert torch.equal(inputs, normalised(data, labels))
    indices = torch.tensor([5, 2, 40, 2])
    inputs, labels = epoch(data, None, indices)
    assert torch.equal(labels, indices)
    assert torch.equal(inputs, normalised(data, indices))


def test_batches_have_the_documented_shapes_and_types() -> None:
    got = list(pixel_source("crop").batches(None, 8, draws()))
    assert [len(y) for _, y in got] == [8] * 6 + [5]
    assert all(x.dtype == torch.float32 and x.shape == (len(y), 3, 10, 7) for x, y in got)
    assert all(y.dtype == torch.int64 for _, y in got)
    assert list(pixel_source().batches(torch.empty(0, dtype=torch.int64), 8, draws())) == []


def test_shuffled_epoch_visits_each_index_once() -> None:
    indices = torch.arange(3, 50, 2)
    inputs, labels = epoch(pixel_source(), draws(), indices)
    assert torch.equal(labels.sort().values, indices)
    assert not torch.equal(labels, indices)
    assert torch.equal(inputs, normalised(pixel_source(), labels))
    assert torch.equal(labels, epoch(pixel_source(), draws(), indices)[1])
    assert not torch.equal(labels, epoch(pixel_source(), draws(1), indices)[1])


def test_later_epochs_of_one_generator_differ() -> None:
    rng = draws()
    assert not torch.equal(epoch(pixel_source(), rng)[1], epoch(pixel_source(), rng)[1])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_chunks_change_nothing(augment: str, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch(pixel_source(augment), draws(), size=batch_size)
    sixteen = 16 * 4 * 3 * 10 * 7  # bytes: the inputs of sixteen examples
    monkeypatch.setattr(batches, "_CHUNK", sixteen)
    chunked = epoch(pixel_source(augment), draws(), size=batch_size)
    assert all(map(torch.equal, whole, chunked))
    held = [inputs.untyped_storage().nbytes() for inputs, _ in pixel_source(augment).batches(None, batch_size, draws())]
    assert max(held) == (sixteen if batch_size <= 16 else 53 * sixteen // 16)


@pytest.mark.parametrize("smallest", [1, 2, 5])
def test_no_batch_and_no_piece_is_smaller_than_it_may_be(smallest: int) -> None:
    """Unless there are no more examples than that."""
    for n in range(1, 40):
        for size in range(smallest, 12):
            sizes = batch_sizes(n, size, smallest)
            assert sum(sizes) == n
            assert len(sizes) == count_batches(n, size, smallest)
            assert min(sizes) >= min(smallest, n)
            assert set(sizes[:-1]) <= {size}
            assert sizes[-1] < size + smallest
            if smallest == 1:
                assert sizes == [len(part) for part in torch.empty(n).split(size)]
                assert piece_sizes(n, size) == [len(part) for part in torch.empty(n).chunk(size)]
            pieces = piece_sizes(n, size, smallest)
            assert sum(pieces) == n
            assert len(pieces) <= size
            assert min(pieces) >= min(smallest, n)
    assert batch_sizes(0, 3, smallest) == []


def test_a_last_batch_that_is_joined_may_end_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch(pixel_source("crop_flip"), draws())
    monkeypatch.setattr(batches, "_CHUNK", 13 * 4 * 3 * 10 * 7)
    found = list(pixel_source("crop_flip").batches(None, 13, draws(), smallest=2))
    assert [len(labels) for _, labels in found] == [13, 13, 13, 14]
    assert all(map(torch.equal, whole, (torch.cat([x for x, _ in found]), torch.cat([y for _, y in found]))))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_data_set_is_left_alone(augment: str) -> None:
    data = BatchSource(Examples(torch.ones(6, 3, 4, 4), torch.arange(6)), MEAN, STD, "cpu", augment)
    epoch(data, draws())
    epoch(data, None)
    assert (data.inputs == 1).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_changes_nothing() -> None:
    here, there = epoch(pixel_source("crop_flip"), draws()), epoch(pixel_source("crop_flip", device="cuda"), draws())
    assert there[0].is_cuda
    torch.testing.assert_close(here[0], there[0].cpu())
    assert torch.equal(here[1], there[1].cpu())


def test_an_evaluation_has_no_batch_of_one_example_at_its_end() -> None:
    """A model that ends with squeeze() takes none: its scores would lose the axis of the examples."""
    sizes: list[int] = []

    class Squeezing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            sizes.append(len(inputs))
            return inputs.mean((2, 3)).squeeze()

    examples = Examples(torch.rand(1001, 2, 2, 2), torch.zeros(1001, dtype=torch.int64))
    evaluate(Squeezing(), BatchSource(examples, torch.zeros(2), torch.ones(2), "cpu"), CLASSIFICATION)
    assert sizes == [500, 501]
