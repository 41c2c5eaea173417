"""Payloads: what a receiver decodes is what the sender takes for sent, in as many bytes as both know beforehand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.index_codecs import INDEX_CODECS
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import MOST_ENTRIES, Sparse
from flare_dist.compression.value_codecs import VALUE_CODECS
from flare_dist.layout import ParameterLayout

CPU = torch.device("cpu")


@st.composite
def packed(draw: st.DrawFn, index_codec: str = "", value_codec: str = "") -> tuple[Packing, Tensor, Tensor, Sparse]:
    """(packing, chosen, values, payload) of up to four tensors, some of which are sent whole."""
    sizes = draw(st.lists(st.integers(0, 3000), min_size=1, max_size=4))
    layout = ParameterLayout.of((str(number), torch.empty(size)) for number, size in enumerate(sizes))
    whole = [entry for entry in layout.entries if draw(st.booleans())]
    config = CompressionConfig(
        index_codec=index_codec or draw(st.sampled_from(["auto", *INDEX_CODECS])),
        value_codec=value_codec or draw(st.sampled_from(list(VALUE_CODECS))),
        value_block=draw(st.sampled_from([0, 1, 100])),
    )
    packing = Packing.of(config, layout, whole, CPU)
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    left = torch.ones(layout.total)
    left[packing.whole] = 0
    chosen = left.nonzero().squeeze(1)
    keep = draw(st.integers(0, len(chosen)))
    chosen = chosen[torch.randperm(len(chosen), generator=rng)[:keep]].sort().values
    values = torch.randn(len(chosen) + len(packing.whole), generator=rng)
    return packing, chosen, values, packing.pack(torch.cat([chosen, packing.whole]), values)


@given(packed())
def test_the_receiver_decodes_what_the_sender_takes_for_sent(drawn: tuple[Packing, Tensor, Tensor, Sparse]) -> None:
    packing, chosen, values, sent = drawn
    assert len(sent.data) == packing.sizes(len(values)).nbytes
    got = packing.unpack_checked(sent.data, sent.values.numel())
    assert got.indices.dtype == torch.int32
    assert torch.equal(got.indices, sent.indices)
    assert torch.equal(got.indices, torch.cat([chosen, packing.whole]).int())
    assert torch.equal(got.values, sent.values)
    if packing.codecs.values is VALUE_CODECS["fp32"]:
        assert torch.equal(got.values, values)


@given(packed(), st.integers(-5, 5))
def test_other_lengths_are_refused(drawn: tuple[Packing, Tensor, Tensor, Sparse], more: int) -> None:
    packing, _, values, sent = drawn
    if more:
        data = torch.cat([sent.data, sent.data.new_zeros(max(more, 0))])[: max(0, len(sent.data) + more)]
        if len(data) != len(sent.data):
            with pytest.raises(ValueError, match=rf"has {len(sent.data)} bytes, not {len(data)}"):
                packing.unpack_checked(data, len(values))
    for kept in (-1, packing.total + packing.whole.numel() + 1, packing.whole.numel() - 1):
        with pytest.raises(ValueError, match="make no payload"):
            packing.unpack_checked(sent.data, kept)


@given(packed(index_codec="int32", value_codec="fp32"))
def test_indices_out_of_range_are_refused(drawn: tuple[Packing, Tensor, Tensor, Sparse]) -> None:
    packing, chosen, values, sent = drawn
    if len(chosen):
        data = sent.data.clone()
        data[4 * len(chosen) - 4 : 4 * len(chosen)] = torch.tensor([packing.total], dtype=torch.int32).view(torch.uint8)
        with pytest.raises(ValueError, match="ascending numbers below"):
            packing.unpack_checked(data, len(values))


def test_whole_tensors_send_no_indices() -> None:
    layout = ParameterLayout.of([("weight", torch.empty(100)), ("bias", torch.empty(10))])
    packing = Packing.of(CompressionConfig(index_codec="int32"), layout, layout.entries[1:], CPU)
    assert packing.sizes(3 + 10).nbytes == 3 * 4 + 13 * 4


def test_more_entries_than_positions_can_name_are_refused() -> None:
    """On a `meta` device the vector takes no memory, so a test can have one that is too long."""
    longest = ParameterLayout.of([("weight", torch.empty(MOST_ENTRIES, device="meta"))])
    Packing.of(CompressionConfig(), longest, [], CPU)
    too_long = ParameterLayout.of([("weight", torch.empty(2**16, 2**15, device="meta"))])
    with pytest.raises(
        ValueError, match=r"^compression\.sparsifier: .* at most 2,147,483,647 entries, got 2,147,483,648"
    ):
        Packing.of(CompressionConfig(), too_long, [], CPU)
