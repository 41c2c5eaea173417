"""The exchange of a round: every rank's client updates in, the cohort's weighted mean out, in one collective.

Sparse: messages are packed into one padded buffer a rank and travel in one all-gather (several for a large cohort);
every rank that steps the server adds them up in client order, so the bits do not depend on who hosted whom. Dense: a
rank adds up its own clients first, and one all-reduce sums the ranks; no copies of the model are gathered.

Weights are those of the whole cohort; if clients were rejected, the sum is divided by the weight that is present.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flare_dist.clients.client import ClientResult
from flare_dist.comm.cohort import Cohort
from flare_dist.comm.message import Message, pack, slot_nbytes, unpack
from flare_dist.comm.world import World
from flare_dist.compression.packing import Encoding
from flare_dist.compression.payload import WORD, Dense, Payload
from flare_dist.server.aggregation import DeltaSum, Receive

GATHER_LIMIT = 64 * 2**20  # bytes a rank contributes to one gather; larger cohorts go in several


@dataclass(frozen=True)
class Received:
    """The means over the accepted clients, and what was sent for them."""

    mean_delta: DeltaSum  # of float32 [total]; zero if nobody was accepted, and on ranks that do not step the server
    mean_buffer_delta: Tensor  # float32 [b]
    accepted: list[int]  # clients, ascending
    rejected: list[int]
    train_loss: float  # mean of the accepted clients' training losses, weighted like their deltas
    kept: int  # entries in all payloads
    uplink_bytes: int  # encoded updates, before padding, without buffers; of dense payloads the values alone
    losses: dict[int, float]  # the training loss of each accepted client
    nbytes: dict[int, int]  # the part of each accepted client in uplink_bytes
    beside: dict[str, Tensor] = field(default_factory=dict)  # means of the payloads beside the delta, on every rank

    @property
    def mean_vector(self) -> Tensor:
        """Return the mean delta, which is a vector everywhere but on the way to a plain step of the server."""
        assert isinstance(self.mean_delta, Tensor)
        return self.mean_delta

    def with_payload(self, name: str, other: Received) -> Received:
        """Add the mean of another payload of the same clients, and its bytes."""
        return replace(
            self,
            beside=self.beside | {name: other.mean_vector},
            kept=self.kept + other.kept,
            uplink_bytes=self.uplink_bytes + other.uplink_bytes,
            nbytes={client: own + other.nbytes[client] for client, own in self.nbytes.items()},
        )


class SparseUplink:
    """The messages of this rank's clients, which a gather exchanges for everybody's.

    They are added up in `delta_sum`, zero at first. `encodings` read each client's payloads, none of which is longer
    than `most_nbytes`.
    """

    def __init__(
        self,
        cohort: Cohort,
        receive: Receive,
        delta_sum: DeltaSum,
        buffers: int,
        encodings: Mapping[int, Encoding],
        most_nbytes: int,
    ) -> None:
        self.cohort = cohort
        self.receive = receive
        self.delta_sum = delta_sum
        self.buffers = buffers
        self.encodings = encodings
        self.slot_nbytes = slot_nbytes(most_nbytes, buffers)
        self._messages: dict[int, Message] = {}

    def add(self, result: ClientResult, payload: Payload | None) -> None:
        """Add one client's update; without a payload it is left out of the round.

        Raises TypeError for a dense payload, which is summed and has no encoding.
        """
        if isinstance(payload, Dense):
            raise TypeError("a dense payload has no encoding: DenseUplink sums it")
        loss = torch.tensor([result.train_loss], dtype=torch.float32).view(torch.uint8)
        self._messages[result.client] = Message(result.client, loss, payload, result.buffer_delta)

    def exchange(self, world: World) -> Received:
        """Gather all messages and take the weighted mean of the accepted payloads in client order."""
        buffer_sum = torch.zeros(self.buffers, device=world.device)
        losses = {}
        nbytes = {}
        kept = 0
        uplink_bytes = 0
        for message in self._gather(world):
            client = message.sender
            payload = message.payload
            uplink_bytes += message.nbytes
            if payload is not None:
                weight = self.cohort.weights[client]
                self.receive(self.delta_sum, client, payload, weight)
                buffer_sum.add_(message.buffers, alpha=weight)
                losses[client] = message.note.view(torch.float32).item()
                nbytes[client] = message.nbytes
                kept += payload.values.numel()
        return _received(self.cohort, losses, self.delta_sum, buffer_sum, kept, uplink_bytes, nbytes)

    def _gather(self, world: World) -> Iterator[Message]:
        """Yield all messages of the cohort in its order, gathered in runs of consecutive clients."""
        clients = list(self.cohort.hosts)
        run = max(1, GATHER_LIMIT // self.slot_nbytes) * world.hosts
        for start in range(0, len(clients), run):
            part = clients[start : start + run]
            hosted = [[client for client in part if self.cohort.hosts[client] == rank] for rank in range(world.hosts)]
            slots = max(map(len, hosted))
            own = [self._messages.pop(client) for client in hosted[world.host_number]]
            gathered = world.all_gather(pack(own, slots, self.slot_nbytes, world.device))
            slot_of = {
                client: packed[number * self.slot_nbytes : (number + 1) * self.slot_nbytes]
                for clients, packed in zip(hosted, gathered)
                for number, client in enumerate(clients)
            }
            yield from unpack([slot_of[client] for client in part], part, self.encodings.__getitem__, self.buffers)


class DenseUplink:
    """The sum of this rank's clients, taken as they come, which an all-reduce adds to those of all ranks.

    The vector that is reduced is [sum of weighted deltas | sum of weighted buffers | loss, accepted? of each client];
    only the hosting rank writes a client's two places, so their sum is what it wrote. Of a sparse model the deltas are
    those of the entries at `active` (int64 positions below `total`), on which the clients agree.
    """

    def __init__(
        self,
        cohort: Cohort,
        receive: Receive,
        total: int,
        buffers: int,
        device: torch.device,
        active: Tensor | None = None,
    ) -> None:
        self.cohort = cohort
        self.receive = receive
        self.total = total
        self.active = active
        sent = total if active is None else active.numel()
        clients = len(cohort.hosts)
        self.sums = torch.zeros(sent + buffers + 2 * clients, device=device)
        self.delta_sum, self.buffer_sum, reports = self.sums.split([sent, buffers, 2 * clients])
        self.reports = dict(zip(cohort.hosts, reports.view(clients, 2)))

    def add(self, result: ClientResult, payload: Payload | None) -> None:
        """Add one client's weighted delta and buffers to this rank's sums; without a payload it is left out."""
        if payload is None:
            return
        weight = self.cohort.weights[result.client]
        self.receive(self.delta_sum, result.client, payload, weight)
        self.buffer_sum.add_(result.buffer_delta, alpha=weight)
        self.reports[result.client].copy_(torch.tensor([result.train_loss, 1.0]))

    def exchange(self, world: World) -> Received:
        """Reduce the sums of all ranks in one collective."""
        world.all_reduce_(self.sums)
        reports = torch.stack(list(self.reports.values())).tolist()
        losses = {client: loss for client, (loss, accepted) in zip(self.reports, reports) if accepted}
        kept = len(losses) * self.delta_sum.numel()
        delta_sum = self.delta_sum
        if self.active is not None:
            delta_sum = delta_sum.new_zeros(self.total).index_copy_(0, self.active, delta_sum)
        nbytes = dict.fromkeys(losses, WORD * self.delta_sum.numel())
        return _received(self.cohort, losses, delta_sum, self.buffer_sum, kept, WORD * kept, nbytes)


def _received(
    cohort: Cohort,
    losses: dict[int, float],
    delta_sum: DeltaSum,
    buffer_sum: Tensor,
    kept: int,
    uplink_bytes: int,
    nbytes: dict[int, int],
) -> Received:
    """Make means of weighted sums over the clients in `losses`, which are those accepted; in place."""
    accepted = list(losses)
    rejected = [client for client in cohort.hosts if client not in losses]
    present = math.fsum(cohort.weights[client] for client in accepted) if rejected else 1.0
    if rejected and accepted:
        delta_sum.div_(present)
        buffer_sum.div_(present)
    train_loss = math.fsum(cohort.weights[client] * loss for client, loss in losses.items()) / (present or 1.0)
    return Received(delta_sum, buffer_sum, accepted, rejected, train_loss, kept, uplink_bytes, losses, nbytes)
