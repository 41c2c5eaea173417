"""The envelope of one client's payload on the way to the server: who sent it, its training loss, the model's buffers.

Encoded updates lie in slots of one size that every rank knows beforehand (`slot_nbytes`), so no exchange of sizes
precedes the exchange itself:

    | client int32 | kept int32 | train_loss float32 | CRC-32 of the rest | buffers float32[b] | payload |

`kept` is -1 for a client whose update was rejected; nothing follows its header.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flare_dist.compression.packing import Form
from flare_dist.compression.payload import WORD, Encoded

HEADER_NBYTES = 16
FIELDS = HEADER_NBYTES - WORD  # bytes of the header before its checksum


@dataclass(frozen=True)
class Update:
    """One client's contribution to a round; `payload` is None where it was rejected."""

    client: int
    train_loss: float
    payload: Encoded | None
    buffers: Tensor  # float32 [b]: the change of the model's floating-point buffers

    @property
    def nbytes(self) -> int:
        """Length of the encoded update in bytes, without the buffers, which are counted apart."""
        return HEADER_NBYTES + (self.payload.nbytes if self.payload else 0)


def slot_nbytes(payload_nbytes: int, buffers: int) -> int:
    """Bytes for an update with a payload of at most `payload_nbytes`: whole words, so that slots may follow another."""
    return HEADER_NBYTES + WORD * buffers + -(-payload_nbytes // WORD) * WORD


def encode(update: Update, slot: Tensor) -> None:
    """Write `update` to the front of `slot`, uint8 [slot_nbytes]; the rest stays as it is."""
    payload, body = update.payload, slot.new_empty(0)
    if payload:
        body = torch.cat([update.buffers.float().contiguous().view(torch.uint8), payload.data])
    counts = torch.tensor([update.client, payload.kept if payload else -1], dtype=torch.int32)
    loss = torch.tensor([update.train_loss], dtype=torch.float32)
    fields = torch.cat([counts.view(torch.uint8), loss.view(torch.uint8)])
    slot[:HEADER_NBYTES].copy_(torch.cat([fields, _checksum(fields, body)]))
    slot[HEADER_NBYTES : HEADER_NBYTES + body.numel()].copy_(body)


def decode(slots: Tensor, buffers: int, form_of: Callable[[int], Form]) -> list[Update]:
    """The updates in `slots`, uint8 [count, slot_nbytes]; their buffers are views into it.

    `buffers` is the number of buffer entries of the model, `form_of` gives a client's form. Raises ValueError where
    the bytes are no such updates, or not those that were sent.
    """
    if slots.shape[1] < HEADER_NBYTES:
        raise ValueError(f"slots of {slots.shape[1]} bytes have no room for a header of {HEADER_NBYTES}")
    headers = slots[:, :HEADER_NBYTES].cpu()  # one copy, so that a GPU is waited for once
    counts = headers[:, :8].contiguous().view(torch.int32).tolist()
    losses = headers[:, 8:FIELDS].contiguous().view(torch.float32).squeeze(1).tolist()
    updates = []
    for (client, kept), train_loss, header, slot in zip(counts, losses, headers, slots):
        try:
            form = form_of(client)
            body = _body(slot, kept, buffers, form)
        except ValueError as error:
            raise ValueError(f"client {client}: {error}") from error
        if not torch.equal(_checksum(header[:FIELDS], body), header[FIELDS:]):
            raise ValueError(f"client {client}: its update was damaged on the way")
        floats, payload = body[: WORD * buffers], None
        if kept != -1:
            payload = form.unpack_checked(body[WORD * buffers :], kept)
        updates.append(Update(client, train_loss, payload, floats.view(torch.float32)))
    return updates


def _body(slot: Tensor, kept: int, buffers: int, form: Form) -> Tensor:
    """The bytes behind the header, buffers and payload."""
    if kept == -1:
        return slot[:0]
    start = HEADER_NBYTES + WORD * buffers
    end = start + form.length(slot[start:], kept)
    if end > slot.numel():
        raise ValueError(f"{kept} entries do not fit into a slot of {slot.numel()} bytes")
    return slot[HEADER_NBYTES:end]


def _checksum(fields: Tensor, body: Tensor) -> Tensor:
    """CRC-32 as uint8 [4]."""
    checksum = zlib.crc32(body.cpu().numpy().data, zlib.crc32(fields.numpy().data))
    return torch.tensor(list(checksum.to_bytes(WORD, "little")), dtype=torch.uint8)
