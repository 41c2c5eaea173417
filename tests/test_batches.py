"""The laws of batches: what an epoch visits, and augmentation against a slow reference, image by image."""

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

MEAN, STD = torch.tensor([100.0, 120.0, 140.0]), torch.tensor([50.0, 60.0, 70.0])


def source(augment: str = "none", n: int = 53, device: str = "cpu") -> BatchSource:
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (n, 3, 10, 7), dtype=torch.uint8, generator=rng)
    return BatchSource(Examples(inputs, torch.arange(n)), MEAN, STD, device, augment)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def epoch(
    data: BatchSource, rng: torch.Generator | None, indices: Tensor | None = None, size: int = 8
) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*data.batches(indices, size, rng))
    return torch.cat(inputs), torch.cat(labels)


def normalised(data: BatchSource, labels: Tensor) -> Tensor:
    """Labels are row numbers here, so they say which image was meant."""
    return (data.inputs[labels].float() - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)


def test_without_generator_in_order_and_unaugmented() -> None:
    data = source("crop_flip")
    assert len(data) == 53
    inputs, labels = epoch(data, None)
    assert torch.equal(labels, torch.arange(53))
    assert torch.equal(inputs, normalised(data, labels))
    indices = torch.tensor([5, 2, 40, 2])
    inputs, labels = epoch(data, None, indices)
    assert torch.equal(labels, indices)
    assert torch.equal(inputs, normalised(data, indices))


def test_shapes_and_types() -> None:
    got = list(source("crop").batches(None, 8, seeded()))
    assert [len(y) for _, y in got] == [8] * 6 + [5]
    assert all(x.dtype == torch.float32 and x.shape == (len(y), 3, 10, 7) for x, y in got)
    assert all(y.dtype == torch.int64 for _, y in got)
    assert list(source().batches(torch.empty(0, dtype=torch.int64), 8, seeded())) == []


def test_shuffled_epoch_visits_each_index_once() -> None:
    indices = torch.arange(3, 50, 2)
    inputs, labels = epoch(source(), seeded(), indices)
    assert torch.equal(labels.sort().values, indices)
    assert not torch.equal(labels, indices)
    assert torch.equal(inputs, normalised(source(), labels))
    assert torch.equal(labels, epoch(source(), seeded(), indices)[1])
    assert not torch.equal(labels, epoch(source(), seeded(1), indices)[1])


def test_later_epochs_of_one_generator_differ() -> None:
    rng = seeded()
    assert not torch.equal(epoch(source(), rng)[1], epoch(source(), rng)[1])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_chunks_change_nothing(augment: str, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch(source(augment), seeded(), size=batch_size)
    sixteen = 16 * 4 * 3 * 10 * 7  # bytes: the inputs of sixteen examples
    monkeypatch.setattr(batches, "_CHUNK", sixteen)
    chunked = epoch(source(augment), seeded(), size=batch_size)
    assert all(map(torch.equal, whole, chunked))
    held = [inputs.untyped_storage().nbytes() for inputs, _ in source(augment).batches(None, batch_size, seeded())]
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
    whole = epoch(source("crop_flip"), seeded())
    monkeypatch.setattr(batches, "_CHUNK", 13 * 4 * 3 * 10 * 7)
    found = list(source("crop_flip").batches(None, 13, seeded(), smallest=2))
    assert [len(labels) for _, labels in found] == [13, 13, 13, 14]
    assert all(map(torch.equal, whole, (torch.cat([x for x, _ in found]), torch.cat([y for _, y in found]))))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_data_set_is_left_alone(augment: str) -> None:
    data = BatchSource(Examples(torch.ones(6, 3, 4, 4), torch.arange(6)), MEAN, STD, "cpu", augment)
    epoch(data, seeded())
    epoch(data, None)
    assert (data.inputs == 1).all()


@pytest.mark.parametrize("augment", ["crop", "flip", "crop_flip"])
def test_augmentation_equals_the_slow_reference(augment: str) -> None:
    data = source(augment)
    inputs, labels = epoch(data, seeded())
    rng = seeded()
    torch.randperm(53, generator=rng)
    moves = AUGMENTATIONS[augment](53, rng)
    assert moves is not None
    for got, image, (top, left, mirrored) in zip(inputs, normalised(data, labels), moves.tolist()):
        padded = torch.zeros(3, 18, 15)
        padded[:, 4:14, 4:11] = image
        cropped = padded[:, top : top + 10, left : left + 7]
        assert torch.equal(got, cropped.flip(-1) if mirrored else cropped)


def test_draws_cover_every_move() -> None:
    moves = AUGMENTATIONS["crop_flip"](2000, seeded())
    assert moves is not None
    assert [column.unique().tolist() for column in moves.unbind(1)] == [list(range(9)), list(range(9)), [0, 1]]
    assert AUGMENTATIONS["none"](5, seeded()) is None


@pytest.mark.parametrize("augment", ["flip", "crop"])
def test_each_augmentation_keeps_to_itself(augment: str) -> None:
    moves = AUGMENTATIONS[augment](500, seeded())
    assert moves is not None
    assert (moves[:, :2] == 4).all() if augment == "flip" else (moves[:, 2] == 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_changes_nothing() -> None:
    here, there = epoch(source("crop_flip"), seeded()), epoch(source("crop_flip", device="cuda"), seeded())
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
