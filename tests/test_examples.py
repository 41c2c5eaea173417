"""Examples in memory: held out, measured, and refused if no task can learn from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.data.datasets import DataSplits, load
from flare_dist.data.examples import Examples
from flare_dist.data.source import Source
from flare_dist.data.sources import SOURCES
from tests.helpers.images import equal, read


def test_a_constant_channel_is_not_divided_by_zero(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.new("RGB", (4, 4), (7, 0, 255)).save(tmp_path / part / "only" / "a.png")
    splits = read(tmp_path)
    assert splits.mean.tolist() == [7, 0, 255]
    assert splits.std.tolist() == [1, 1, 1]


def test_validation_is_seeded_disjoint_and_complete() -> None:
    def held(seed: int) -> DataSplits:
        return load(DataConfig(validation=0.25), seed)

    splits, whole = held(3), load(DataConfig(), 3).train
    assert splits.validation is not None
    assert len(splits.validation) == round(0.25 * len(whole))
    both = torch.cat([splits.train.inputs, splits.validation.inputs]).flatten(1)
    assert sorted(both.tolist()) == sorted(whole.inputs.flatten(1).tolist())
    again, other = held(3).validation, held(4).validation
    assert again is not None
    assert other is not None
    assert equal(splits.validation, again)
    assert not equal(splits.validation, other)


def test_validation_must_leave_something() -> None:
    with pytest.raises(ValueError, match=r"^data\.validation: "):
        load(DataConfig(name="synthetic", validation=0.9, synthetic=SyntheticConfig(examples=3)), seed=0)


LABELS = torch.arange(4) % 3

INPUTS = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)

NOT_A_NUMBER = torch.full((4, 1, 2, 2), float("nan"))


def given(source: Source, config: DataConfig, seed: int) -> Source:
    return source


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        (Examples(INPUTS, LABELS.float()), r"labels must be int64 \[4\], .*, got float32 \[4\]"),
        (Examples(INPUTS, LABELS.int()), r"labels must be int64 \[4\], .*, got int32 \[4\]"),
        (Examples(INPUTS, torch.eye(4).long()), r"labels must be int64 \[4\], .*, got int64 \[4, 4\]"),
        (Examples(INPUTS, LABELS + 1), "labels must be classes 0 to 2, got 3"),
        (Examples(INPUTS, LABELS - 1), "labels must be classes 0 to 2, got -1"),
        (Examples(INPUTS, LABELS[:3]), r"labels must be int64 \[4\], .*, got int64 \[3\]"),
        (Examples(INPUTS.double(), LABELS), r"inputs must be images uint8 or float32 .*, got float64 \[4, 1, 2, 2\]"),
        (Examples(INPUTS[:, 0], LABELS), r"inputs must be .*, got uint8 \[4, 2, 2\]"),
        (Examples(INPUTS.flatten(1).float(), LABELS), r"inputs must be .*, got float32 \[4, 4\]"),
        (Examples(NOT_A_NUMBER, LABELS), "inputs must be finite, got infinite ones or NaN"),
        (Examples(INPUTS, LABELS, LABELS.float()), r"groups must be int64 \[4\], got float32 \[4\]"),
        (Examples(INPUTS[:0], LABELS[:0]), "there are no examples"),
    ],
)
def test_examples_of_no_use_to_any_task_are_refused(
    examples: Examples, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that a user adds to the sources fails in words, not in the loss or in a partitioner."""
    good = Examples(INPUTS, LABELS)
    for part, source in (("train", Source(examples, good, classes=3)), ("test", Source(good, examples, classes=3))):
        monkeypatch.setitem(SOURCES, "mine", partial(given, source))
        with pytest.raises(ValueError, match=rf"^data\.name: mine: {part}: {said}$"):
            load(DataConfig(name="mine"), seed=0)
