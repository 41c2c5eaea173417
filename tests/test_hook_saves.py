"""The watch for ranks that do not save."""

from __future__ import annotations

import pytest
import torch

from flare_dist.hook.saves import SaveWatch

RANKS = 2


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
