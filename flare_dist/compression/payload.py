"""The bytes of one client's update.

A `Payload` is what compression makes of a model delta. An `Update` is its envelope on the way to the server: who sent
it, its training loss and the model's buffers. Encoded updates lie in slots of one size that every rank knows beforehand
(`slot_nbytes`), so no exchange of sizes precedes the exchange itself:

    | client int32 | kept int32 | train_loss float32 | indices int32[kept] | values float32[kept] | buffers float32[b] |

`kept` is -1 for a client whose update was rejected; nothing follows its header.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HEADER_NBYTES = 12
PAIR_NBYTES = 8  # int32 index + float32 value


@dataclass(frozen=True)
class Payload:
    """What is sent of a model delta: `values` float32 [kept] at `indices` int32 [kept], or all of it (None)."""

    indices: Tensor | None
    values: Tensor

    @property
    def kept(self) -> int:
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        return self.kept * (4 if self.indices is None else PAIR_NBYTES)


@dataclass(frozen=True)
class Update:
    """One client's contribution to a round; `payload` is None where it was rejected."""

    client: int
    train_loss: float
    payload: Payload | None
    buffers: Tensor  # float32 [b]: the change of the model's floating-point buffers

    @property
    def nbytes(self) -> int:
        """Length of the encoded update in bytes, without the buffers, which are counted apart."""
        return HEADER_NBYTES + (self.payload.nbytes if self.payload else 0)


def slot_nbytes(kept: int, buffers: int) -> int:
    """The most bytes that an update of at most `kept` pairs and `buffers` buffer entries can take."""
    return HEADER_NBYTES + PAIR_NBYTES * kept + 4 * buffers


def encode(update: Update, slot: Tensor) -> None:
    """Write `update` to the front of `slot`, uint8 [slot_nbytes]; the rest stays as it is."""
    payload = update.payload
    header = torch.tensor([update.client, payload.kept if payload else -1], dtype=torch.int32)
    loss = torch.tensor([update.train_loss], dtype=torch.float32)
    parts = [torch.cat([header.view(torch.uint8), loss.view(torch.uint8)])]
    if payload:
        assert payload.indices is not None, "dense payloads are summed, not encoded"
        for part in (payload.indices.int(), payload.values.float(), update.buffers.float()):
            parts.append(part.contiguous().view(torch.uint8))
    start = 0
    for part in parts:
        slot[start : start + part.numel()].copy_(part)
        start += part.numel()


def decode(slots: Tensor, buffers: int) -> list[Update]:
    """The updates in `slots`, uint8 [count, slot_nbytes]; their tensors are views into it.

    `buffers` is the number of buffer entries of the model. Raises ValueError where the bytes are no such updates.
    """
    if slots.shape[1] < HEADER_NBYTES:
        raise ValueError(f"slots of {slots.shape[1]} bytes have no room for a header of {HEADER_NBYTES}")
    headers = slots[:, :HEADER_NBYTES].cpu().contiguous()  # one copy, so that a GPU is waited for once
    counts = headers[:, :8].contiguous().view(torch.int32).tolist()
    losses = headers[:, 8:].contiguous().view(torch.float32).squeeze(1).tolist()
    updates = []
    for (client, kept), train_loss, slot in zip(counts, losses, slots):
        if kept == -1:
            updates.append(Update(client, train_loss, None, slot.new_empty(0).view(torch.float32)))
            continue
        if kept < 0 or slot_nbytes(kept, buffers) > slot.numel():
            raise ValueError(f"client {client}: {kept} pairs do not fit into a slot of {slot.numel()} bytes")
        sizes = [4 * kept, 4 * kept, 4 * buffers]
        indices, values, floats = slot[HEADER_NBYTES : HEADER_NBYTES + sum(sizes)].split(sizes)
        payload = Payload(indices.view(torch.int32), values.view(torch.float32))
        updates.append(Update(client, train_loss, payload, floats.view(torch.float32)))
    return updates
