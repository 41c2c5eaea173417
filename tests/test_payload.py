"""Payloads tell how many entries they are."""

from __future__ import annotations

import torch

from flare_dist.compression.payload import Masked, Sparse


def test_encoded_payloads_have_as_many_entries_as_values() -> None:
    indices, values, data = torch.arange(3, dtype=torch.int32), torch.ones(3), torch.zeros(17, dtype=torch.uint8)
    for payload in (Sparse(indices, values, data), Masked(indices, values, data, torch.ones(9).bool(), 5)):
        assert payload.kept == 3
