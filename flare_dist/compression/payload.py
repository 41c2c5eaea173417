"""Payloads: what is sent of a flat vector, in three types.

`Dense` is summed before the wire and has no encoding. `Sparse` and `Masked` are encoded (packing.py, masked.py): their
values are those that a receiver decodes from `data`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

WORD = 4
MOST_ENTRIES = 2**31 - 1  # positions, counts and lengths travel as int32


def check_positions(total: int, what: str) -> None:
    """Raise ValueError if a vector of `total` entries has positions that int32 cannot hold."""
    if total > MOST_ENTRIES:
        raise ValueError(
            f"compression.sparsifier: sparse payloads address at most {MOST_ENTRIES:,} entries, got {total:,} in "
            f"{what}; use dense, or train fewer parameters"
        )


@dataclass(frozen=True)
class Dense:
    """Every entry of a vector: `values` float32 [total]."""

    values: Tensor


@dataclass(frozen=True)
class Sparse:
    """Some entries of a vector: `values` float32 [kept] at `indices` [kept], encoded as `data` uint8 [nbytes].

    Indices are int32, and int64 if they were chosen on a GPU.
    """

    indices: Tensor
    values: Tensor
    data: Tensor


@dataclass(frozen=True)
class Masked:
    """Some of the active entries of a sparse model: a sparse payload, and the mask that its client has now."""

    indices: Tensor  # int32 [kept], in the whole vector
    values: Tensor  # float32 [kept]
    data: Tensor  # uint8 [nbytes]
    mask: Tensor  # bool [total]: which of the client's weights are active
    mask_nbytes: int  # how many bytes of `data` encode the mask


Encoded = Sparse | Masked  # what has bytes of its own
Payload = Dense | Encoded
