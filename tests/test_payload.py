"""Payloads come back as they were sent, byte for byte, and broken ones are refused."""

from __future__ import annotations

import pytest
import torch

from flare_dist.compression.payload import Payload, decode, encode, max_nbytes, rejected

CPU = torch.device("cpu")


def payload(client: int, kept: int, buffers: int = 0) -> Payload:
    rng = torch.Generator().manual_seed(client)
    indices = torch.randperm(1000, generator=rng)[:kept].sort().values.int()
    values, floats = torch.randn(kept, generator=rng), torch.randn(buffers, generator=rng)
    return Payload(client, client / 3, indices, values, floats)


def bits(payload: Payload) -> list[object]:
    """All that a payload holds, with floats as the integers of their bits."""
    floats = [x.contiguous().view(torch.int32).tolist() for x in (payload.values, payload.buffers)]
    loss = torch.tensor(payload.train_loss).view(torch.int32).item()
    return [payload.client, payload.accepted, loss, payload.indices.tolist(), *floats]


@pytest.mark.parametrize("buffers", [0, 5])
@pytest.mark.parametrize("padding", [0, 3, 512])
def test_decoding_gives_back_what_was_encoded(buffers: int, padding: int) -> None:
    """Several behind one another, with padding behind them; one empty, one rejected, in the middle and at the end."""
    sent = [
        payload(3, 11, buffers),
        payload(5, 0, buffers),
        rejected(6, 2.5, CPU),
        payload(2**31 - 1, 1, buffers),
        rejected(9, 0.0, CPU),
    ]
    padded = torch.cat([*map(encode, sent), torch.full((padding,), 255, dtype=torch.uint8)])
    got = decode(padded, len(sent), buffers)
    assert list(map(bits, got)) == list(map(bits, sent))
    assert all(p.indices.dtype == torch.int32 and p.values.dtype == torch.float32 for p in got)
    assert list(map(bits, decode(padded, 2, buffers))) == list(map(bits, sent[:2]))
    assert decode(padded, 0, buffers) == []


def test_special_values_keep_their_bits() -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, float("inf"), float("-inf"), float("nan"), 3.4e38])
    sent = Payload(0, float("nan"), torch.arange(7), values, values.flip(0))
    (got,) = decode(encode(sent), 1, 7)
    assert bits(got)[3:] == bits(sent)[3:]
    assert got.train_loss != got.train_loss


def test_int64_indices_and_strided_tensors_are_taken() -> None:
    sent = Payload(1, 0.5, torch.arange(10)[::2], torch.arange(10.0)[::2], torch.arange(4.0)[::2])
    assert bits(decode(encode(sent), 1, 2)[0]) == bits(sent)


@pytest.mark.parametrize("buffers", [0, 5])
@pytest.mark.parametrize("kept", [0, 1, 300])
def test_sizes_are_those_of_the_bytes(kept: int, buffers: int) -> None:
    sent = payload(1, kept, buffers)
    encoded = encode(sent)
    assert encoded.dtype == torch.uint8
    assert sent.kept == kept
    assert len(encoded) == sent.nbytes + 4 * buffers == max_nbytes(kept, buffers)
    assert sent.nbytes == 12 + 8 * kept


def test_a_rejected_client_costs_a_header() -> None:
    sent = rejected(7, float("inf"), CPU)
    assert len(encode(sent)) == sent.nbytes == 12
    (got,) = decode(encode(sent), 1, buffers=5)
    assert (got.client, got.accepted, got.kept, got.train_loss) == (7, False, 0, float("inf"))


@pytest.mark.parametrize("cut", range(1, 52, 5))
def test_truncated_bytes_are_refused(cut: int) -> None:
    encoded = encode(payload(3, 4, buffers=2))
    with pytest.raises(ValueError, match="buffer of"):
        decode(encoded[:-cut], 1, 2)


@pytest.mark.parametrize("kept", [5, 2**31 - 1, -2, -(2**31)])
def test_corrupt_counts_are_refused(kept: int) -> None:
    """Four pairs were sent; only -1 stands for a rejected client."""
    encoded = encode(payload(3, 4))
    encoded[4:8] = torch.tensor([kept], dtype=torch.int32).view(torch.uint8)
    with pytest.raises(ValueError, match="client 3:"):
        decode(encoded, 1, 0)


def test_fewer_payloads_than_asked_for_are_refused() -> None:
    with pytest.raises(ValueError, match="payload header expected at byte 44 of a buffer of 44 bytes"):
        decode(encode(payload(3, 4)), 2, 0)
    with pytest.raises(ValueError, match="payload header expected at byte 0"):
        decode(torch.empty(0, dtype=torch.uint8), 1, 0)


def test_decoding_copies_nothing() -> None:
    encoded = encode(payload(3, 4))
    (got,) = decode(encoded, 1, 0)
    encoded[12:] = 0
    assert not got.indices.any()
    assert not got.values.any()
