"""Updates come back as they were sent, byte for byte, and broken ones are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.packing import Packing
from flare_dist.compression.update import HEADER_NBYTES, Update, encode
from flare_dist.compression.update import decode as decode_with
from flare_dist.compression.update import slot_nbytes as slot_nbytes_of
from flare_dist.layout import Entry, ParameterLayout

LAYOUT = ParameterLayout((Entry("weight", (1000,), 0),))
PACKING = Packing.of(CompressionConfig(index_codec="int32"), LAYOUT, [], torch.device("cpu"))


def slot_nbytes(kept: int, buffers: int) -> int:
    return slot_nbytes_of(8 * kept, buffers)


def decode(slots: Tensor, buffers: int) -> list[Update]:
    return decode_with(slots, buffers, lambda client: PACKING)


def update(client: int, kept: int, buffers: int = 0) -> Update:
    rng = torch.Generator().manual_seed(client)
    indices = torch.randperm(1000, generator=rng)[:kept].sort().values.int()
    values, floats = torch.randn(kept, generator=rng), torch.randn(buffers, generator=rng)
    return Update(client, client / 3, PACKING.pack(indices, values), floats)


def rejected(client: int, train_loss: float) -> Update:
    return Update(client, train_loss, None, torch.empty(0))


def in_slots(sent: list[Update], nbytes: int, device: str = "cpu") -> Tensor:
    """Each update in a slot of its own, in front of what was there before."""
    slots = torch.full((len(sent), nbytes), 255, dtype=torch.uint8, device=device)
    for each, slot in zip(sent, slots):
        encode(each, slot)
    return slots


def bits(update: Update) -> list[object]:
    """All that an update holds, with floats as the integers of their bits."""
    payload, buffers = update.payload, update.buffers.contiguous().view(torch.int32).tolist()
    header = [update.client, torch.tensor(update.train_loss).view(torch.int32).item()]
    if payload is None:
        return [*header, None, buffers]
    values = payload.values.contiguous().view(torch.int32).tolist()
    return [*header, payload.indices.tolist(), values, buffers]


@pytest.mark.parametrize("buffers", [0, 5])
@pytest.mark.parametrize("max_kept", [11, 12, 200])
def test_decoding_gives_back_what_was_encoded(buffers: int, max_kept: int) -> None:
    """Full, half full and empty slots with garbage behind; rejected updates at the front, between and at the end."""
    sent = [
        rejected(2, 0.25),
        update(3, 11, buffers),
        update(5, 0, buffers),
        rejected(6, 2.5),
        update(2**31 - 1, 1, buffers),
        rejected(9, 0.0),
    ]
    slots = in_slots(sent, slot_nbytes(max_kept, buffers))
    got = decode(slots, buffers)
    assert list(map(bits, got)) == list(map(bits, sent))
    for payload in (each.payload for each in got if each.payload):
        assert (payload.indices.dtype, payload.values.dtype) == (torch.int32, torch.float32)
    assert all(each.buffers.dtype == torch.float32 for each in got)
    assert list(map(bits, decode(slots[[4, 3, 1]], buffers))) == [bits(sent[place]) for place in (4, 3, 1)]
    assert decode(slots[:0], buffers) == []


def test_special_values_keep_their_bits() -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, float("inf"), float("-inf"), float("nan"), 3.4e38])
    sent = Update(0, float("nan"), PACKING.pack(torch.arange(7), values), values.flip(0))
    (got,) = decode(in_slots([sent], slot_nbytes(7, 7)), 7)
    assert bits(got)[2:] == bits(sent)[2:]
    assert got.train_loss != got.train_loss


def test_int64_indices_and_strided_tensors_are_taken() -> None:
    sent = Update(1, 0.5, PACKING.pack(torch.arange(10)[::2], torch.arange(10.0)[::2]), torch.arange(4.0)[::2])
    assert bits(decode(in_slots([sent], slot_nbytes(5, 2)), 2)[0]) == bits(sent)


@pytest.mark.parametrize("buffers", [0, 5])
@pytest.mark.parametrize("kept", [0, 1, 300])
def test_sizes_are_those_of_the_bytes(kept: int, buffers: int) -> None:
    """An update fills the slot made for it to the last byte, and of a larger one nothing more."""
    sent = update(1, kept, buffers)
    assert sent.payload is not None
    assert sent.payload.kept == kept
    assert sent.nbytes == HEADER_NBYTES + sent.payload.nbytes == HEADER_NBYTES + 8 * kept
    filled = sent.nbytes + 4 * buffers
    assert filled == slot_nbytes(kept, buffers)
    written = []
    for before in (0, 255):
        slot = torch.full((filled + 20,), before, dtype=torch.uint8)
        encode(sent, slot)
        assert (slot[filled:] == before).all()
        written.append(slot[:filled])
    assert torch.equal(*written)


def test_a_rejected_client_costs_a_header() -> None:
    sent = rejected(7, float("inf"))
    assert sent.nbytes == HEADER_NBYTES
    slots = in_slots([sent], slot_nbytes(3, 5))
    assert (slots[0, HEADER_NBYTES:] == 255).all()
    (got,) = decode(slots, buffers=5)
    assert (got.client, got.payload, got.train_loss, got.buffers.numel()) == (7, None, float("inf"), 0)
    assert got.buffers.dtype == torch.float32


@pytest.mark.parametrize("cut", range(1, 41, 3))
def test_truncated_slots_are_refused(cut: int) -> None:
    slots = in_slots([rejected(1, 0.5), update(3, 4, buffers=2)], slot_nbytes(4, 2))
    with pytest.raises(ValueError, match=rf"^client 3: 4 entries do not fit into a slot of {56 - cut} bytes$"):
        decode(slots[:, :-cut], 2)


@pytest.mark.parametrize("kept", [5, 2**31 - 1, -2, -(2**31)])
def test_corrupt_counts_are_refused(kept: int) -> None:
    """Four pairs were sent; only -1 stands for a rejected client."""
    slots = in_slots([update(3, 4)], slot_nbytes(4, 0))
    slots[0, 4:8] = torch.tensor([kept], dtype=torch.int32).view(torch.uint8)
    with pytest.raises(ValueError, match=f"^client 3: {kept} "):
        decode(slots, 0)


def test_more_buffers_than_were_sent_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^client 3:"):
        decode(in_slots([update(3, 4, buffers=2)], slot_nbytes(4, 2)), 3)


def test_an_update_larger_than_its_slot_does_not_reach_into_the_next() -> None:
    packed = torch.full((2 * slot_nbytes(4, 0),), 255, dtype=torch.uint8)
    with pytest.raises(RuntimeError):
        encode(update(3, 5), packed[: slot_nbytes(4, 0)])
    assert (packed[slot_nbytes(4, 0) :] == 255).all()


def test_buffers_are_not_copied() -> None:
    slots = in_slots([update(3, 4, buffers=2)], slot_nbytes(4, 2))
    (got,) = decode(slots, 2)
    slots[:, HEADER_NBYTES:] = 0
    assert not got.buffers.any()


def test_any_flipped_bit_is_noticed() -> None:
    sent = in_slots([update(3, 4, buffers=2), rejected(5, 0.5)], slot_nbytes(4, 2))
    for slot, nbytes in ((0, slot_nbytes(4, 2)), (1, HEADER_NBYTES)):
        for bit in range(8 * nbytes):
            damaged = sent.clone()
            damaged[slot, bit // 8] ^= 1 << bit % 8
            with pytest.raises(ValueError, match=r"^client -?\d+: (its update was damaged|-?\d+ (of|entries))"):
                decode(damaged, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_changes_no_byte() -> None:
    sent = [update(3, 11, 5), rejected(6, 2.5), update(5, 0, 5)]
    slots = in_slots(sent, slot_nbytes(11, 5), "cuda")
    assert torch.equal(slots.cpu(), in_slots(sent, slot_nbytes(11, 5)))
    got = decode(slots, 5)
    assert all(each.buffers.is_cuda for each in got)
    assert list(map(bits, got)) == list(map(bits, sent))
