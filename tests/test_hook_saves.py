"""The watch for ranks that do not save."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flare_dist.hook.saves import SaveWatch, failed_anywhere


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_notes_on_a_gpu_are_not_waited_for() -> None:
    watch = SaveWatch()
    words = torch.tensor([2, 0], dtype=torch.int32, device="cuda").view(-1, 1).view(torch.uint8)
    torch.cuda._sleep(10**9)
    watch.receive(words)
    watch.look()
    assert watch.is_whole is None
    torch.cuda.synchronize()
    with pytest.warns(UserWarning, match="rank 0 saved .* and rank 1 did not"):
        watch.look()


def note(watch: SaveWatch) -> torch.Tensor:
    return watch.note(torch.zeros((), dtype=torch.bool))


def test_a_save_that_one_rank_did_not_make_is_told_once() -> None:
    first, second = SaveWatch(), SaveWatch()
    first.count(Path("somewhere"))
    first.receive(torch.stack([note(first), note(second)]))
    assert first.is_whole is None
    with pytest.warns(UserWarning, match="rank 0 saved .* and rank 1 did not"):
        first.look()
    assert first.is_whole is False
    first.count(Path("somewhere"))
    first.receive(torch.stack([note(first), note(second)]))
    first.look()  # which would raise if it warned again
    second.count(Path("somewhere"))
    second.count(Path("somewhere"))
    first.receive(torch.stack([note(first), note(second)]))
    first.look()


def test_flags_of_failures_and_of_saves_are_independent() -> None:
    watch = SaveWatch()
    for saves in range(3):
        failed, fine = (watch.note(torch.tensor(answer)) for answer in (True, False))
        assert failed.view(torch.int32).item() == 2 * saves + 1
        assert fine.view(torch.int32).item() == 2 * saves
        assert failed_anywhere(torch.stack([fine, failed]))
        assert not failed_anywhere(torch.stack([fine, fine]))
        watch.count(Path("somewhere"))
