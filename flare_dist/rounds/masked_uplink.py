"""The uplink of sparse models: the active weights travel, and the masks that clients moved.

It wraps the uplink of whole models: the compressor sees the active entries alone, and the mean of what was sent becomes
the mean of models whose masks may differ.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import FEDAVG, Algorithm
from flare_dist.clients.client import ClientResult
from flare_dist.comm.cohort import Cohort, mean_in_order
from flare_dist.comm.exchange import DenseUplink, Received, SparseUplink
from flare_dist.compression.error_feedback import State
from flare_dist.compression.index_codecs import positions_nbytes
from flare_dist.compression.payload import WORD, Masked, Payload
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.uplink import WholeUplink, leave_to_rank_0
from flare_dist.seeding import generator
from flare_dist.server.aggregation import DeltaSum
from flare_dist.sparse_training.aggregation import ClientMasks
from flare_dist.sparse_training.assignment import assign
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.sparse_training.masks import drop_outside, layers_of, sizes
from flare_dist.sparse_training.no_masks import NoMasks
from flare_dist.sparse_training.schedule import moves_in


def sparse_models(models: Masks | NoMasks) -> Algorithm:
    """Train, send and average the active weights alone: pruned models, FLASH, FedDST and PruneFL, as the masks move."""
    if isinstance(models, NoMasks):
        return FEDAVG
    return Algorithm(wraps=partial(MaskedUplink, masks=models))


class MaskedUplink:
    """The uplink of one round of sparse models, around that of whole models."""

    def __init__(self, round_: int, cohort: Cohort, fed: Federation, masks: Masks) -> None:
        self.round = round_
        self.cohort = cohort
        self.fed = fed
        self.masks = masks
        self.moves = moves_in(round_, masks.config, masks.rounds)
        trainer = fed.clients.trainer
        examples = {client: fed.clients.partition.sizes[client] for client in cohort.hosts}
        steps = {client: (trainer.steps_with(own), trainer.epoch_steps(own)) for client, own in examples.items()}
        self.assigned = assign(masks, fed.compressor, round_, self.moves, steps, fed.server.parameters.data)
        self.dropped = dict.fromkeys(cohort.hosts, 0)  # entries of each client's memory that lay outside its mask
        self.client_masks: ClientMasks | None = None  # unless all clients keep one mask
        self.squares: Tensor | None = None  # float32 [total]: the clients' mean sum of squared gradients, if measured
        self.mask_nbytes = 0
        self._moved: dict[int, Tensor] = {}  # the masks with which the clients on this rank ended
        self._measured: dict[int, Tensor] = {}  # their squared gradients
        self._whole = WholeUplink(round_, cohort, fed, self._open_payloads(), self._compress)

    def _open_payloads(self) -> DenseUplink | SparseUplink:
        """Open the exchange of active weights: dense sums if all clients keep one mask, a gather otherwise."""
        server = self.fed.server
        world = self.fed.world
        total = server.parameters.numel()
        buffers = server.buffers.numel()
        common = next((a.encoding for a in self.assigned.values() if a.encoding.is_common), None)
        if self.fed.compressor.is_dense and common:
            return DenseUplink(self.cohort, server.receive, total, buffers, world.device, common.active)
        if not common:
            self.client_masks = ClientMasks()
        encodings = {client: assignment.encoding for client, assignment in self.assigned.items()}
        most = max(encoding.most_nbytes() for encoding in set(encodings.values()))
        delta_sum = torch.zeros_like(server.parameters.data)
        return SparseUplink(self.cohort, self._receive, delta_sum, buffers, encodings, most)

    def _receive(self, total: DeltaSum, client: int, payload: Payload, weight: float) -> None:
        """Add one client's payload to the sum if this rank steps the server, and note its mask."""
        receive = self.fed.server.receive if self.fed.steps_here else leave_to_rank_0
        receive(total, client, payload, weight)
        if self.client_masks and isinstance(payload, Masked):
            self.client_masks.add(payload, weight)

    def downlink_nbytes(self) -> int:
        """Count what a star sends to the cohort: active weights in float32 and masks; call it once.

        A smaller budget's mask is told by its positions in the consensus; a personal one both sides hold.
        """
        masks = self.masks
        active = {client: assignment.encoding.active.numel() for client, assignment in self.assigned.items()}
        nbytes = WORD * sum(active.values())
        method = masks.method
        if method.is_personal:
            return nbytes
        consensus = int(masks.mask.count_nonzero())
        whole = masks.whole_nbytes()
        for client, count in active.items():
            nbytes += positions_nbytes(consensus, count) if count < consensus else 0
            told = masks.downlink.nbytes_to(client, whole)
            nbytes += told if self.fed.world.host.shard == 0 else 0  # it is that of the whole host
        return nbytes

    def local_mask(self, client: int, memory: State) -> LocalMask:
        """Drop what the client remembers of weights that the server has pruned, and open its mask."""
        masks = self.masks
        own = self.assigned[client]
        self.dropped[client] = drop_outside(list(memory.values()), own.encoding.mask)
        draws = generator(masks.seed, "growth", self.round, client)
        return LocalMask(
            masks.config,
            masks.layers,
            own.encoding.mask,
            own.budget,
            own.rates,
            draws,
            masks.factor,
            masks.growth,
            self.moves.measured,
        )

    def add(self, result: ClientResult, memory: State) -> None:
        """Compress the weights that are active in the client's mask as it has become."""
        if result.squares is not None and result.is_finite:
            self._measured[result.client] = result.squares
        if result.mask is not None:
            self._moved[result.client] = result.mask
        self._whole.add(result, memory)

    def _compress(self, round_: int, client: int, delta: Tensor, memory: State) -> Payload:
        """Compress a delta of active weights; what the client remembers of those that it has pruned is dropped."""
        mask = self._moved[client]
        self.dropped[client] += drop_outside(list(memory.values()), mask)
        return self.assigned[client].encoding.compress(client, delta, memory, mask)

    def exchange(self) -> Received:
        """Gather the active weights, the clients' masks and, if they measure, their squared gradients."""
        received = self._whole.exchange()
        if self.client_masks:
            self.mask_nbytes = self.client_masks.mask_nbytes
        if self.moves.measured:
            self.squares = self._mean_squares(received)
        if self.squares is None:
            return received
        self.mask_nbytes = WORD * sum(sizes(self.masks.layers.own)) * len(received.accepted)
        return replace(received, uplink_bytes=received.uplink_bytes + self.mask_nbytes)

    def _mean_squares(self, received: Received) -> Tensor | None:
        """Average the squared gradients of the prunable weights, which clients send in float32."""
        layers = self.masks.layers
        weights = {client: self.cohort.weights[client] for client in received.accepted}
        own = {client: torch.cat(list(layers_of(squares, layers))) for client, squares in self._measured.items()}
        mean, _ = mean_in_order(self.fed.world, Cohort(self.cohort.hosts, weights), own, sum(sizes(layers.own)))
        if mean is None:
            return None
        squares = mean.new_zeros(self.masks.total)
        for layer, part in zip(layers_of(squares, layers), mean.split(sizes(layers.own))):
            layer.copy_(part)
        return squares

    def step(self, received: Received) -> None:
        """Step on the mean of the clients' models, and move the masks.

        Every rank keeps personal ones; a new consensus is sent to the ranks that did not make it.
        """
        server = self.fed.server
        steps_here = self.fed.steps_here
        if self.client_masks and steps_here:
            self.masks.average(received.mean_vector, server.parameters.data, self.client_masks)
        self._whole.step(received)
        if steps_here:
            self.masks.move(self.moves, server, self.client_masks, self.squares)
        self.masks.remember(received.accepted, self.client_masks)
        if self.moves.server and not server.is_plain:
            mask = self.fed.world.broadcast_(self.masks.mask.to(torch.uint8))
            self.masks.mask = mask.bool()

    def row(self, received: Received) -> dict[str, Any]:
        """Report densities and bytes of masks, and how much memory was dropped; all ranks call it together."""
        world = self.fed.world
        of_host = world.host.sums(list(self.dropped.values()))
        dropped = world.largest([float(count) for count in of_host])  # 0 but on a client's host
        row = self.masks.report(self.fed.server.parameters.data, self.client_masks, self.mask_nbytes)
        return row | {"dropped_residuals": int(sum(dropped))}
