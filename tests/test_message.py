"""Messages come back as they were sent, broken ones are refused, and the hook and a round send the same bytes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flare_dist.clients.client import ClientResult
from flare_dist.comm import exchange
from flare_dist.comm.cohort import Cohort
from flare_dist.comm.message import ALIGNMENT, CHECK, HEADER_NBYTES, NOTE, Message, pack, unpack, write
from flare_dist.comm.message import slot_nbytes as slot_nbytes_of
from flare_dist.comm.world import World
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import Payload
from flare_dist.hook import ddp
from flare_dist.hook.ddp import exchange_gradients
from flare_dist.hook.state import SparseHookState
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.server.aggregation import DeltaSum, mean
from tests.ranks import run_ranks

CPU = torch.device("cpu")
LAYOUT = ParameterLayout((Entry("weight", (1000,), 0),))
PACKING = Packing.of(CompressionConfig(index_codec="int32"), LAYOUT, [], CPU)


def slot_nbytes(kept: int, buffers: int) -> int:
    return slot_nbytes_of(8 * kept, buffers)


def received(slots: Tensor, sent: list[Message], buffers: int) -> list[Message]:
    """Read the messages of these senders from rows of bytes."""
    return unpack(list(slots), [message.sender for message in sent], lambda client: PACKING, buffers)


def note(train_loss: float) -> Tensor:
    return torch.tensor([train_loss]).view(torch.uint8)


def message(client: int, kept: int, buffers: int = 0) -> Message:
    rng = torch.Generator().manual_seed(client)
    indices = torch.randperm(1000, generator=rng)[:kept].sort().values.int()
    values = torch.randn(kept, generator=rng)
    return Message(client, note(client / 3), PACKING.pack(indices, values), torch.randn(buffers, generator=rng))


def rejected(client: int, train_loss: float) -> Message:
    return Message(client, note(train_loss), None, torch.empty(0))


def in_slots(sent: list[Message], nbytes: int, device: str = "cpu") -> Tensor:
    """Each message in a slot of its own, in front of what was there before."""
    slots = torch.full((len(sent), nbytes), 255, dtype=torch.uint8, device=device)
    for each, slot in zip(sent, slots):
        write(each, slot)
    return slots


def bits(message: Message) -> list[object]:
    """All that a message holds, with floats as the integers of their bits."""
    payload, buffers = message.payload, message.buffers.contiguous().view(torch.int32).tolist()
    header = [message.sender, message.note.tolist()]
    if payload is None:
        return [*header, None, buffers]
    values = payload.values.contiguous().view(torch.int32).tolist()
    return [*header, payload.indices.tolist(), values, buffers]


@pytest.mark.parametrize("buffers", [0, 5])
@pytest.mark.parametrize("max_kept", [11, 12, 200])
def test_reading_gives_back_what_was_written(buffers: int, max_kept: int) -> None:
    """Full, half full and empty slots with garbage behind; rejected updates at the front, between and at the end."""
    sent = [
        rejected(2, 0.25),
        message(3, 11, buffers),
        message(5, 0, buffers),
        rejected(6, 2.5),
        message(2**31 - 1, 1, buffers),
        rejected(9, 0.0),
    ]
    slots = in_slots(sent, slot_nbytes(max_kept, buffers))
    got = received(slots, sent, buffers)
    assert list(map(bits, got)) == list(map(bits, sent))
    for payload in (each.payload for each in got if each.payload):
        assert (payload.indices.dtype, payload.values.dtype) == (torch.int32, torch.float32)
    assert all(each.buffers.dtype == torch.float32 for each in got)
    some = [sent[place] for place in (4, 3, 1)]
    assert list(map(bits, received(slots[[4, 3, 1]], some, buffers))) == list(map(bits, some))
    assert received(slots[:0], [], buffers) == []


def test_special_values_keep_their_bits() -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, float("inf"), float("-inf"), float("nan"), 3.4e38])
    sent = Message(0, note(float("nan")), PACKING.pack(torch.arange(7), values), values.flip(0))
    (got,) = received(in_slots([sent], slot_nbytes(7, 7)), [sent], 7)
    assert bits(got) == bits(sent)


def test_int64_indices_and_strided_tensors_are_taken() -> None:
    payload = PACKING.pack(torch.arange(10)[::2], torch.arange(10.0)[::2])
    sent = Message(1, note(0.5), payload, torch.arange(4.0)[::2])
    assert bits(received(in_slots([sent], slot_nbytes(5, 2)), [sent], 2)[0]) == bits(sent)


@pytest.mark.parametrize("buffers", [0, 5])
@pytest.mark.parametrize("kept", [0, 1, 300])
def test_sizes_are_those_of_the_bytes(kept: int, buffers: int) -> None:
    """A message fills the slot made for it to the last byte, and of a larger one nothing more."""
    sent = message(1, kept, buffers)
    assert sent.payload is not None
    assert sent.payload.values.numel() == kept
    assert sent.nbytes == HEADER_NBYTES + sent.payload.data.numel() == HEADER_NBYTES + 8 * kept
    filled = sent.nbytes + 4 * buffers
    assert filled == slot_nbytes(kept, buffers)
    written = []
    for before in (0, 255):
        slot = torch.full((filled + 20,), before, dtype=torch.uint8)
        write(sent, slot)
        assert (slot[filled:] == before).all()
        written.append(slot[:filled])
    assert torch.equal(*written)


def test_a_rank_contributes_whole_slots_padded_with_zeros() -> None:
    sent = [message(3, 4), rejected(5, 0.5)]
    packed = pack(sent, 3, slot_nbytes(20, 0), CPU)
    assert packed.numel() == math.ceil(3 * slot_nbytes(20, 0) / ALIGNMENT) * ALIGNMENT
    slots = packed[: 3 * slot_nbytes(20, 0)].view(3, -1)
    assert list(map(bits, received(slots[:2], sent, 0))) == list(map(bits, sent))
    assert not slots[2].any()
    assert not packed[3 * slot_nbytes(20, 0) :].any()


def test_a_rejected_client_costs_a_header() -> None:
    sent = rejected(7, float("inf"))
    assert sent.nbytes == HEADER_NBYTES
    slots = in_slots([sent], slot_nbytes(3, 5))
    assert (slots[0, HEADER_NBYTES:] == 255).all()
    (got,) = received(slots, [sent], buffers=5)
    assert bits(got) == bits(sent)
    assert got.buffers.dtype == torch.float32


@pytest.mark.parametrize("cut", range(1, 41, 3))
def test_truncated_slots_are_refused(cut: int) -> None:
    sent = [rejected(1, 0.5), message(3, 4, buffers=2)]
    slots = in_slots(sent, slot_nbytes(4, 2))
    with pytest.raises(ValueError, match=rf"^client 3: 4 entries do not fit into a slot of {56 - cut} bytes$"):
        received(slots[:, :-cut], sent, 2)


def test_slots_without_room_for_a_header_are_refused() -> None:
    with pytest.raises(ValueError, match="slots of 12 bytes have no room for a header of 16"):
        received(in_slots([message(3, 4)], slot_nbytes(4, 0))[:, :12], [message(3, 4)], 0)


@pytest.mark.parametrize("kept", [5, 2**31 - 1, -2, -(2**31)])
def test_corrupt_counts_are_refused(kept: int) -> None:
    """Four pairs were sent; only -1 stands for a rejected client."""
    slots = in_slots([message(3, 4)], slot_nbytes(4, 0))
    slots[0, 4:8] = torch.tensor([kept], dtype=torch.int32).view(torch.uint8)
    with pytest.raises(ValueError, match=f"^client 3: {kept} "):
        received(slots, [message(3, 4)], 0)


def test_a_message_of_another_sender_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^client 5: the message in its place names sender 3$"):
        received(in_slots([message(3, 4)], slot_nbytes(4, 0)), [message(5, 4)], 0)


def test_another_number_of_entries_than_agreed_is_refused() -> None:
    slots = list(in_slots([message(3, 4)], slot_nbytes(4, 0)))
    (got,) = unpack(slots, [3], lambda rank: PACKING, kept=4, kind="rank")
    assert bits(got) == bits(message(3, 4))
    with pytest.raises(ValueError, match=r"^rank 3: 4 entries came, and 5 were expected$"):
        unpack(slots, [3], lambda rank: PACKING, kept=5, kind="rank")


def test_more_buffers_than_were_sent_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^client 3:"):
        received(in_slots([message(3, 4, buffers=2)], slot_nbytes(4, 2)), [message(3, 4)], 3)


def test_a_message_longer_than_its_slot_is_refused_and_writes_nothing() -> None:
    packed = torch.full((2 * slot_nbytes(4, 0),), 255, dtype=torch.uint8)
    with pytest.raises(ValueError, match="a message of 56 bytes does not fit into a slot of 48"):
        write(message(3, 5), packed[: slot_nbytes(4, 0)])
    assert (packed == 255).all()


def test_buffers_are_not_copied() -> None:
    slots = in_slots([message(3, 4, buffers=2)], slot_nbytes(4, 2))
    (got,) = received(slots, [message(3, 4)], 2)
    slots[:, HEADER_NBYTES:] = 0
    assert not got.buffers.any()


def test_any_flipped_bit_is_noticed() -> None:
    sent = [message(3, 4, buffers=2), rejected(5, 0.5)]
    slots = in_slots(sent, slot_nbytes(4, 2))
    noticed = r"^client [35]: (its message was damaged|the message in its place|-?\d+ (of|entries))"
    for slot, nbytes in ((0, slot_nbytes(4, 2)), (1, HEADER_NBYTES)):
        for bit in range(8 * nbytes):
            damaged = slots.clone()
            damaged[slot, bit // 8] ^= 1 << bit % 8
            with pytest.raises(ValueError, match=noticed):
                received(damaged, sent, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_changes_no_byte_but_the_check() -> None:
    sent = [message(3, 11, 5), rejected(6, 2.5), message(5, 0, 5)]
    slots = in_slots(sent, slot_nbytes(11, 5), "cuda")
    assert not slots[:, CHECK].any()
    expected = in_slots(sent, slot_nbytes(11, 5))
    expected[:, CHECK] = 0
    assert torch.equal(slots.cpu(), expected)
    got = received(slots, sent, 5)
    assert all(each.buffers.is_cuda for each in got)
    assert list(map(bits, got)) == list(map(bits, sent))


# Law 8: the hook and a round that carry the same vector send the same bytes.

SETTINGS: list[dict[str, Any]] = [
    {"density": 0.05},
    {"density": 0.3, "value_codec": "int8"},
    {"density": 0.02, "dense_below": 7, "index_codec": "int32", "error_feedback": "dgc"},
    {"density": 0.1, "scope": "block", "block": 64},
    {"density": 0.1, "sparsifier": "auto", "value_codec": "2bit"},
]


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 7))


def vector(rank: int, step: int, total: int) -> Tensor:
    return torch.randn(total, generator=torch.Generator().manual_seed(10 * step + rank))


class Spy:
    """Keeps what each rank contributes to a gather."""

    def __init__(self) -> None:
        self.packed: list[Tensor] = []

    def __call__(self, *arguments: Any) -> Tensor:
        packed = pack(*arguments)
        self.packed.append(packed.clone())
        return packed


def sent_by_the_hook(world: World, settings: dict[str, Any]) -> tuple[list[Tensor], int]:
    """The contributions of this rank to two steps of one bucket, and the bytes on the wire."""
    trained, spy = model(), Spy()
    state = SparseHookState(trained, **settings)
    parameters = list(trained.parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddp, "pack", spy)
        for step in range(2):
            state.begin_step()
            exchange_gradients(state, parameters, vector(world.rank, step, sum(p.numel() for p in parameters))).wait()
    return spy.packed, state.wire_bytes


def add(total: DeltaSum, client: int, payload: Payload, weight: float) -> None:
    mean(total, payload, weight)


def sent_by_a_round(world: World, settings: dict[str, Any]) -> tuple[list[Tensor], int]:
    """The same for two rounds of a client on each rank."""
    layout, spy = ParameterLayout.of(model().named_parameters()), Spy()
    compressor = Compressor(CompressionConfig(**settings), layout, 0)
    memory = {name: torch.zeros(layout.total) for name in compressor.state_names}
    clients = range(world.size)
    cohort = Cohort({client: client for client in clients}, dict.fromkeys(clients, 1 / world.size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "pack", spy)
        for step in range(2):
            delta, plan = vector(world.rank, step, layout.total), compressor.plan(step + 1)
            encodings, most = dict.fromkeys(clients, plan.packing), plan.packing.most_nbytes(plan.max_kept)
            used = exchange.SparseUplink(cohort, add, torch.zeros(layout.total), 0, encodings, most)
            result = ClientResult(world.rank, 1, 0.5, delta, torch.zeros(0))
            used.add(result, compressor.compress(step + 1, world.rank, delta, memory))
            used.exchange(world)
    return spy.packed, world.traffic.wire_bytes


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ",".join(settings))
def test_the_hook_and_a_round_that_carry_the_same_vector_send_the_same_bytes(settings: dict[str, Any]) -> None:
    by_hook = run_ranks(sent_by_the_hook, 2, settings)
    by_round = run_ranks(sent_by_a_round, 2, settings)
    for rank, ((hooks, hook_wire), (rounds, round_wire)) in enumerate(zip(by_hook, by_round)):
        assert hook_wire == round_wire == 2 * sum(map(len, hooks))
        for hook, round_ in zip(hooks, rounds, strict=True):
            assert hook[:4].view(torch.int32).item() == round_[:4].view(torch.int32).item() == rank
            assert not hook[NOTE].any()
            assert round_[NOTE].view(torch.float32).item() == 0.5
            for packed in (hook, round_):
                packed[NOTE.start : CHECK.stop] = 0
            assert torch.equal(hook, round_)
            assert hook[HEADER_NBYTES:].any()


def damaged(world: World) -> str:
    """What the backward of a rank raises after a bit of rank 1's message has flipped."""
    trained = model()
    state = SparseHookState(trained, density=0.05)
    wrapped = nn.parallel.DistributedDataParallel(trained)
    wrapped.register_comm_hook(state, ddp.sparse_hook)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddp, "pack", partial(_flip, world.rank))
        try:
            wrapped(torch.ones(2, 30)).sum().backward()
        except (RuntimeError, ValueError) as error:
            return str(error)
    return ""


def _flip(rank: int, *arguments: Any) -> Tensor:
    packed = pack(*arguments)
    packed[40] ^= rank
    return packed


def test_a_damaged_message_ends_the_backward_and_names_its_rank() -> None:
    first, second = run_ranks(damaged, 2)
    assert "rank 1: its message was damaged on the way" in first
    assert second == ""
