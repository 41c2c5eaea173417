"""Payloads of sparse models: only active entries travel, a moved mask arrives, and sizes are those promised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flare_dist.compression.compressor import Compressor
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.index_codecs import bound_bits
from flare_dist.compression.masked import HEADER, Limits, MaskedEncoding, change_nbytes
from flare_dist.compression.payload import MOST_ENTRIES, Dense, Masked
from flare_dist.layout import ParameterLayout

LAYOUT = ParameterLayout.of([(name, torch.empty(n)) for name, n in (("a", 300), ("bias", 7), ("b", 500))])


def random(seed: int, share: float) -> Tensor:
    mask = torch.rand(LAYOUT.total, generator=torch.Generator().manual_seed(seed)) < share
    mask[300:307] = True
    return mask


def encoding(
    config: CompressionConfig, mask: Tensor, limits: Limits | None = None, is_common: bool = False
) -> MaskedEncoding:
    return MaskedEncoding(Compressor(config, LAYOUT, 0), 1, mask, limits, is_common)


@given(st.integers(0, 1000), st.floats(0.0, 0.5), st.floats(0.0, 0.5), st.sampled_from(["dense", "topk", "randk"]))
def test_a_moved_mask_and_the_values_arrive(seed: int, share: float, flipped: float, sparsifier: str) -> None:
    own = CompressionConfig(sparsifier=sparsifier, density=0.3, error_feedback="none")
    known, flips = random(seed, share), random(seed + 1, flipped)
    flips[300:307] = False
    mask = known ^ flips
    removed, grown = int((known & flips).sum()), int((~known & flips).sum())
    used = encoding(own, known, Limits(removed + 3, grown + 1, int(mask.sum())))
    delta = torch.randn(LAYOUT.total, generator=torch.Generator().manual_seed(seed))
    payload = used.compress(0, delta, {}, mask)
    assert isinstance(payload, Masked)
    data = payload.data
    kept = payload.values.numel()
    assert data.numel() <= used.most_nbytes()
    padded = torch.cat([data, data.new_zeros(9)])
    assert used.length(padded, kept) == data.numel()
    got = used.unpack_checked(data, kept)
    assert torch.equal(got.mask, mask)
    assert torch.equal(got.indices, payload.indices)
    assert torch.equal(got.values, delta[got.indices])
    assert mask[got.indices].all()
    assert kept == int(mask.sum()) or sparsifier != "dense"
    assert got.values.numel() == kept
    before = int(known.sum())
    assert payload.mask_nbytes == HEADER + change_nbytes(before, LAYOUT.total - before, removed, grown)


@pytest.mark.parametrize("sparsifier", ["topk", "threshold", "auto"])
@pytest.mark.parametrize("scope", ["tensor", "block", "global"])
@pytest.mark.parametrize("count", ["ceil", "paper"])
def test_no_payload_is_longer_than_was_agreed(sparsifier: str, scope: str, count: str) -> None:
    for density, share in ((0.1, 0.2), (0.03, 0.9), (0.6, 0.5)):
        own = CompressionConfig(
            sparsifier=sparsifier, density=density, scope=scope, count=count, block=16, error_feedback="none"
        )
        mask = random(3, share)
        used = encoding(own, random(4, share), Limits(800, 800, int(mask.sum())))
        payload = used.compress(0, torch.randn(LAYOUT.total), {}, mask)
        assert isinstance(payload, Masked)
        assert len(payload.data) <= used.most_nbytes()


def test_a_known_mask_costs_nothing() -> None:
    mask = random(0, 0.1)
    used = encoding(CompressionConfig(sparsifier="dense"), mask)
    payload = used.compress(0, torch.randn(LAYOUT.total), {}, mask)
    assert isinstance(payload, Masked)
    assert (len(payload.data), payload.mask_nbytes) == (4 * int(mask.sum()), 0)
    common = encoding(CompressionConfig(sparsifier="dense"), mask, is_common=True)
    delta = torch.randn(LAYOUT.total)
    summed = common.compress(0, delta, {}, mask)
    assert isinstance(summed, Dense)
    assert torch.equal(summed.values, delta[mask])


def test_error_feedback_selects_among_what_is_active_and_keeps_the_rest() -> None:
    mask = random(3, 0.4)
    used, state = encoding(CompressionConfig(density=0.1), mask), {"residual": torch.randn(LAYOUT.total) * mask}
    delta, before = torch.randn(LAYOUT.total), state["residual"].clone()
    payload = used.compress(0, delta, state, mask)
    assert isinstance(payload, Masked)
    sent = torch.zeros(LAYOUT.total).index_add_(0, payload.indices, payload.values)
    assert torch.equal(sent + state["residual"], (before + delta) * mask)
    assert not sent[~mask].any()
    kept = [-(-int(mask[e.offset : e.end].sum()) // 10) for e in LAYOUT.entries]
    assert payload.values.numel() == sum(kept)


def test_a_change_of_a_mask_costs_little_more_than_it_must() -> None:
    before, outside, moved = 558_000, 10_600_000, 70_000
    bound = (bound_bits(before, moved) + bound_bits(outside, moved)) / 8
    assert bound <= change_nbytes(before, outside, moved, moved) <= 1.12 * bound


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: HEADER - 1],  # no room for the counts
        lambda data: data[: HEADER + 2],  # nor for the positions
        lambda data: torch.cat([data[:4], torch.full((4,), 255, dtype=torch.uint8), data[8:]]),  # a negative count
        lambda data: torch.cat([data[:4], torch.full((4,), 127, dtype=torch.uint8), data[8:]]),  # more than agreed
        lambda data: torch.cat([data, data[:3]]),
    ],
)
def test_damaged_changes_are_errors(damage: Any) -> None:
    known = random(0, 0.3)
    mask = known ^ (random(1, 0.1) & (torch.arange(LAYOUT.total) > 310))
    used = encoding(CompressionConfig(sparsifier="dense"), known, Limits(100, 100, int(mask.sum())))
    payload = used.compress(0, torch.randn(LAYOUT.total), {}, mask)
    assert isinstance(payload, Masked)
    with pytest.raises(ValueError, match=r"mask|payload|entries"):
        used.unpack_checked(damage(payload.data), payload.values.numel())


def test_lengths_that_cannot_be_are_errors() -> None:
    used = encoding(CompressionConfig(sparsifier="dense"), random(0, 0.3), Limits(0, 5, LAYOUT.total))
    with pytest.raises(ValueError, match="no room for the change of a mask"):
        used.length(torch.zeros(5, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="cannot have 0 bytes"):
        used.length(torch.zeros(50, dtype=torch.uint8), 3)


def test_a_payload_too_long_for_its_length_is_refused() -> None:
    mask = torch.ones(LAYOUT.total, dtype=torch.bool)
    own = CompressionConfig(density=0.5)
    assert encoding(own, mask, Limits(1, 1, 1000)).most_nbytes() > encoding(own, mask).most_nbytes()
    with pytest.raises(ValueError, match=r"^compression\.density: a payload takes at most 2,147,483,647 bytes"):
        encoding(own, mask, Limits(1, 1, MOST_ENTRIES)).most_nbytes()
