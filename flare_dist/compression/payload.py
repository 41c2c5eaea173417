"""The bytes of one client's update: a header, int32 indices, float32 values and the model's buffers.

    | client int32 | kept int32 | train_loss float32 | indices int32[kept] | values float32[kept] | buffers float32[b] |

`kept` is -1 for a client whose update was rejected; nothing follows its header. Payloads stand one behind the other in
a buffer whose size every rank knows beforehand (`max_nbytes`), so no exchange of sizes precedes the exchange itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HEADER_NBYTES = 12
PAIR_NBYTES = 8  # int32 index + float32 value


@dataclass(frozen=True)
class Payload:
    """One client's decoded update: `indices` int32 [kept], `values` float32 [kept], `buffers` float32 [b]."""

    client: int
    train_loss: float
    indices: Tensor
    values: Tensor
    buffers: Tensor
    accepted: bool = True

    @property
    def kept(self) -> int:
        return self.indices.numel()

    @property
    def nbytes(self) -> int:
        """Length of the encoded payload in bytes, without the buffers, which are counted apart."""
        return HEADER_NBYTES + PAIR_NBYTES * self.kept


def rejected(client: int, train_loss: float, device: torch.device) -> Payload:
    """The payload of a client that is left out of the round: a header only."""
    empty = torch.empty(0, device=device)
    return Payload(client, train_loss, empty.int(), empty, empty, accepted=False)


def max_nbytes(kept: int, buffers: int) -> int:
    """The most bytes that a payload of at most `kept` pairs and `buffers` buffer entries can take."""
    return HEADER_NBYTES + PAIR_NBYTES * kept + 4 * buffers


def encode(payload: Payload) -> Tensor:
    """The payload as a uint8 vector on the device of its tensors."""
    device = payload.values.device
    counts = torch.tensor([payload.client, payload.kept if payload.accepted else -1], dtype=torch.int32, device=device)
    loss = torch.tensor([payload.train_loss], dtype=torch.float32, device=device)
    parts = [counts, loss, payload.indices.int(), payload.values, payload.buffers]
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts])


def decode(buffer: Tensor, count: int, buffers: int) -> list[Payload]:
    """The first `count` payloads of a uint8 `buffer`; their tensors are views into it.

    `buffers` is the number of buffer entries of the model. Raises ValueError where the bytes are no such payloads.
    """
    payloads, start = [], 0
    for _ in range(count):
        if start + HEADER_NBYTES > buffer.numel():
            raise ValueError(f"payload header expected at byte {start} of a buffer of {buffer.numel()} bytes")
        client, kept = buffer[start : start + 8].view(torch.int32).tolist()
        train_loss = buffer[start + 8 : start + HEADER_NBYTES].view(torch.float32).item()
        start += HEADER_NBYTES
        if kept == -1:
            payloads.append(rejected(client, train_loss, buffer.device))
            continue
        sizes = [4 * kept, 4 * kept, 4 * buffers]
        if kept < 0 or start + sum(sizes) > buffer.numel():
            raise ValueError(f"client {client}: {kept} pairs at byte {start} of a buffer of {buffer.numel()} bytes")
        indices, values, floats = buffer[start : start + sum(sizes)].split(sizes)
        start += sum(sizes)
        payloads.append(
            Payload(
                client, train_loss, indices.view(torch.int32), values.view(torch.float32), floats.view(torch.float32)
            )
        )
    return payloads
