"""Payloads tell how many entries and bytes they are."""

from __future__ import annotations

import torch

from flare_dist.compression.payload import Dense, Masked, Sparse


def test_a_dense_payload_is_its_values() -> None:
    payload = Dense(torch.arange(10.0))
    assert (payload.kept, payload.nbytes) == (10, 40)


def test_encoded_payloads_are_as_long_as_their_bytes() -> None:
    indices, values, data = torch.arange(3, dtype=torch.int32), torch.ones(3), torch.zeros(17, dtype=torch.uint8)
    for payload in (Sparse(indices, values, data), Masked(indices, values, data, torch.ones(9).bool(), 5)):
        assert (payload.kept, payload.nbytes) == (3, 17)
