"""Both means of models whose masks differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.compression.masked import HEADER
from flare_dist.compression.payload import Masked
from flare_dist.rounds.federated import federated_round
from flare_dist.sparse_training.aggregation import ClientMasks, masked_mean_of_models, mean_of_models
from flare_dist.sparse_training.consensus import Masks
from tests.helpers.masks import HETERO, begin, config, play, spy
from tests.ranks import single


def test_equal_masks_make_the_masked_mean_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    still = config(prune_rate=0.0)  # masks travel, and never move
    mean, *_, reports = single(play, still)
    masked, *_ = single(play, config(still, update_mode="masked_mean"))
    assert torch.equal(mean, masked)
    assert reports[-1]["mask_mismatch"] == 0.0
    assert reports[-1]["mask_bytes"] == 4 * HEADER
    moving = single(play, config())[0], single(play, config(update_mode="masked_mean"))[0]
    assert not torch.equal(*moving)


@pytest.mark.parametrize("update_mode", ["mean", "masked_mean"])
@pytest.mark.parametrize("hetero", [(), HETERO])
def test_the_server_has_the_mean_of_the_clients_models(
    update_mode: str, hetero: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spy(monkeypatch)
    used = config(update_mode=update_mode, hetero=hetero)
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    for round_ in (1, 2, 3):
        seen.clear()
        federated_round(round_, fed)
        models = torch.stack([parameters.double() for _, parameters, _ in seen])
        masks = torch.stack([result.mask.double() for result, _, _ in seen if result.mask is not None])
        holders = masks.sum(0)
        expected = models.sum(0) / (len(models) if update_mode == "mean" else holders.clamp(min=1))
        consensus = fed.masks.mask  # made of the aggregate's largest weights
        torch.testing.assert_close(
            fed.server.parameters.detach()[consensus].double(), expected[consensus], rtol=1e-5, atol=1e-6
        )
        for entry in fed.masks.layers.whole:
            own = slice(entry.offset, entry.end)
            left_out = expected[own][~consensus[own] & (holders[own] > 0)].abs()
            assert not left_out.numel() or left_out.max() <= expected[own][consensus[own]].abs().min() + 1e-6


def test_a_weight_that_nobody_has_becomes_zero_under_both_means() -> None:
    parameters, sent = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 0.0])
    for combine, expected in (
        (mean_of_models, [1.5, 2.0 * 0.25 + 0.25, 0.0]),
        (masked_mean_of_models, [1.5, 2.0 + 0.25 / 0.25, 0.0]),
    ):
        gathered = ClientMasks()
        for weight, mask in ((0.25, [True, True, False]), (0.75, [True, False, False])):
            gathered.add(_with_mask(torch.tensor(mask)), weight)
        combined = parameters + combine(sent.clone(), parameters, gathered)
        torch.testing.assert_close(combined, torch.tensor(expected))


def _with_mask(mask: Tensor) -> Masked:
    none = torch.empty(0)
    return Masked(none.int(), none, none.byte(), mask, 7)
