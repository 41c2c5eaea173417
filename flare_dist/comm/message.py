"""The message: what one sender contributes to a gather, in a round and in the hook alike.

    | sender int32 | kept int32 | note, 4 bytes | CRC-32 of the rest | buffers float32[b] | payload | padding |

The bytes of the payload are those of compression/packing.py and masked.py.
The sender is a client in a round and a rank in the hook. `kept` is -1 if its update was rejected; nothing follows then.
The note is the training loss (float32) in a round, and flags (int32, hook/save_watch.py) in the hook. Messages lie in
slots of one size that every rank computes beforehand, so that no exchange of sizes precedes the gather.

Nothing here waits for a GPU unless it has to learn `kept` from the header. There the check is 0 and not verified.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flare_dist.compression.packing import Encoding, Packing
from flare_dist.compression.payload import WORD, Encoded

HEADER_NBYTES = 16
NOTE = slice(8, 12)
CHECK = slice(12, HEADER_NBYTES)
REJECTED = -1
ALIGNMENT = 512  # NCCL is several times slower on odd sizes


@dataclass(frozen=True)
class Message:
    """One sender's contribution to a gather; `payload` is None if it was rejected."""

    sender: int
    note: Tensor  # uint8 [4], on the device of the payload or on the CPU
    payload: Encoded | None
    buffers: Tensor  # float32 [b]: the change of the model's floating-point buffers

    @property
    def nbytes(self) -> int:
        """Count the bytes, without the buffers, which are counted apart, and without padding."""
        return HEADER_NBYTES + (self.payload.data.numel() if self.payload else 0)


def slot_nbytes(payload_nbytes: int, buffers: int) -> int:
    """Count the bytes of a slot for a payload of at most `payload_nbytes`: whole words, so that another may follow."""
    return HEADER_NBYTES + WORD * buffers + -(-payload_nbytes // WORD) * WORD


def pack(messages: Sequence[Message], slots: int, slot: int, device: torch.device) -> Tensor:
    """Write a rank's messages into `slots` slots of `slot` bytes, one in each; uint8, padded to the alignment."""
    packed = torch.zeros(-(-slots * slot // ALIGNMENT) * ALIGNMENT, dtype=torch.uint8, device=device)
    for number, message in enumerate(messages):
        write(message, packed[number * slot : (number + 1) * slot])
    return packed


def write(message: Message, slot: Tensor) -> None:
    """Write a message to the front of `slot`, uint8 [slot_nbytes]; the rest stays as it is, and a check on a GPU.

    Raises ValueError, and writes nothing, if the message is longer.
    """
    payload = message.payload
    parts = [message.buffers.float().contiguous().view(torch.uint8), payload.data] if payload else []
    end = HEADER_NBYTES + sum(part.numel() for part in parts)
    if end > slot.numel():
        raise ValueError(f"a message of {end} bytes does not fit into a slot of {slot.numel()}")
    header = slot[:HEADER_NBYTES].view(torch.int32)
    # Filled, for a copy of numbers to a GPU would have to be waited for.
    header[0].fill_(message.sender)
    header[1].fill_(payload.values.numel() if payload else REJECTED)
    slot[NOTE].copy_(message.note)
    start = HEADER_NBYTES
    for part in filter(Tensor.numel, parts):
        slot[start : start + part.numel()].copy_(part)
        start += part.numel()
    if not slot.is_cuda:
        header[3].fill_(_check(slot[:end]))


def unpack(
    slots: Sequence[Tensor],
    senders: Sequence[int],
    encoding_of: Callable[[int], Encoding],
    buffers: int = 0,
    kept: int | None = None,
    kind: str = "client",
) -> list[Message]:
    """Read the messages of these `senders` at the front of `slots`, uint8 each; their buffers are views.

    Args:
        encoding_of: how a sender's payload is read.
        buffers: the number of buffer entries in each message.
        kept: the entries of every payload, if that is known: then nothing waits for a GPU.
        kind: of the senders, for error messages.

    Raises ValueError with the sender if the bytes are no such message, or not those that were sent.
    """
    if kept is not None and all(slot.is_cuda for slot in slots):
        headers = slots
        found = [(sender, kept) for sender in senders]
    else:
        headers, found = _headers(slots)
    messages = []
    for slot, sender, header, (named, count) in zip(slots, senders, headers, found, strict=True):
        try:
            if named != sender:
                raise ValueError(f"the message in its place names sender {named}")
            if kept not in (None, count):
                raise ValueError(f"{count} entries came, and {kept} were expected")
            encoding = encoding_of(sender)
            body = _body(slot, count, buffers, encoding)
            payload = None
            if count != REJECTED:
                data = body[WORD * buffers :]
                payload = encoding.unpack_checked(data, count) if kept is None else encoding.unpack(data, count)
        except ValueError as error:
            raise ValueError(f"{kind} {sender}: {error}") from error
        messages.append(Message(sender, header[NOTE], payload, body[: WORD * buffers].view(torch.float32)))
    return messages


def unpack_rows(slots: Tensor, packing: Packing, kept: int) -> tuple[Tensor, Tensor]:
    """Read the messages of all ranks at once on a GPU, uint8 [W, slot], none with buffers, each of `kept` entries.

    Returns their positions, integers [W, kept], and values; no header is looked at, for that would be waited for.
    """
    return packing.unpack_rows(slots[:, HEADER_NBYTES : HEADER_NBYTES + packing.sizes(kept).nbytes], kept)


def _headers(slots: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[tuple[int, int]]]:
    """Read the headers, uint8 [16] each, by one copy to the CPU; also the sender and the number of entries of each."""
    if not slots:
        return [], []
    shortest = min(slot.numel() for slot in slots)
    if shortest < HEADER_NBYTES:
        raise ValueError(f"slots of {shortest} bytes have no room for a header of {HEADER_NBYTES}")
    headers = torch.stack([slot[:HEADER_NBYTES] for slot in slots]).cpu()
    return headers.unbind(), [(sender, kept) for sender, kept, *_ in headers.view(torch.int32).tolist()]


def _body(slot: Tensor, kept: int, buffers: int, encoding: Encoding) -> Tensor:
    """Return buffers and payload behind the header. Raises ValueError if the bytes are not those that were sent."""
    end = HEADER_NBYTES
    if kept != REJECTED:
        start = HEADER_NBYTES + WORD * buffers
        end = start + encoding.length(slot[start:], kept)
    if end > slot.numel():
        raise ValueError(f"{kept} entries do not fit into a slot of {slot.numel()} bytes")
    if not slot.is_cuda and slot[CHECK].view(torch.int32).item() != _check(slot[:end]):
        raise ValueError("its message was damaged on the way")
    return slot[HEADER_NBYTES:end]


def _check(message: Tensor) -> int:
    """Compute the CRC-32 of all bytes of a message but those of the check itself, as an int32."""
    data = message.numpy().data
    unsigned = zlib.crc32(data[CHECK.stop :], zlib.crc32(data[: CHECK.start]))
    return unsigned - 2**32 if unsigned >= 2**31 else unsigned
