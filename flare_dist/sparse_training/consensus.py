"""The masks of a run: the server's consensus, the clients' personal ones, and how both move.

The consensus is part of the server's state. If clients move their masks, the new ones come with their payloads; the
server then averages their models and, with jmwst and feddst, prunes the aggregate to the next consensus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from flare_dist.compression.bits import set_bits, unpack_bits
from flare_dist.compression.index_codecs import positions_nbytes
from flare_dist.compression.payload import WORD, check_positions
from flare_dist.seeding import generator
from flare_dist.sparse_training import flash
from flare_dist.sparse_training.aggregation import UPDATE_MODES, ClientMasks
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.downlink import MaskDownlink, change_between
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.masks import everything_but, layer_counts, layers_of, mask_mismatch
from flare_dist.sparse_training.methods import METHODS
from flare_dist.sparse_training.next_mask import next_mask
from flare_dist.sparse_training.pruning import layer_shares
from flare_dist.sparse_training.schedule import Moves


class SparseServer(Protocol):
    """The part of a server that masks change."""

    parameters: Any  # float32 [total]

    def forget_outside(self, mask: Tensor) -> int:
        """Reset the optimizer's state outside a mask; returns how many entries had moved there."""


class Masks:
    """The masks of a run on this rank; `mask`, bool [total], is the consensus, or the first of personal masks.

    `total` is the length of this rank's vectors, of which `layers` tells the parts that are prunable. All ranks of a
    host call the methods together.

    Call `begin`, `begin_with` or `load_state_dict` once, and in each round `move` after the server's step and
    `remember` on every rank. `uses`, of methods that measure, tells how often an example uses a weight of each entry.
    """

    def __init__(
        self,
        config: SparseTrainingConfig,
        layers: Layers,
        total: int,
        seed: int,
        rounds: int,
        device: torch.device,
        uses: Sequence[float] = (),
    ) -> None:
        """Raise ValueError if positions in the model do not fit into int32."""
        check_positions(total, "one sparse model")
        self.config = config
        self.method = METHODS[config.method]
        self.average = UPDATE_MODES[config.resolved_update_mode]
        self.growth = config.resolved_growth
        self.rounds = rounds
        self.layers = layers
        self.total = total
        self.seed = seed
        self.device = device
        self.uses = uses
        self.mask = everything_but(layers, total, device)  # none yet
        self.dropped_moments = 0  # entries of the server optimizer's state, when the consensus was last applied
        self.factor = torch.empty(total, device=device)  # of the client that is training
        self.downlink = MaskDownlink()
        self._personal: dict[int, Tensor] = {}  # client -> the bits of its own mask

    def begin(self, densities: Sequence[float] | None) -> None:
        """Draw the consensus of these layer densities, or the random mask of a method without a first stage."""
        draws = generator(self.seed, "consensus mask")
        drawn = densities or [self.config.density] * len(self.layers.whole)
        if self.method.densities == "erk":
            drawn = flash.budget_densities(self.config, self.layers, layer_shares("erk", self.layers.whole) or [])
        self.mask = flash.drawn_mask(self.config, self.layers, drawn, self.total, draws, self.device)
        self.downlink.begin(WORD * len(drawn) if densities else 0)  # the densities, from which it is drawn

    def begin_with(self, mask: Tensor) -> None:
        """Take this mask as the consensus; clients are told its positions."""
        self.mask = mask
        self.downlink.begin(self.whole_nbytes())

    def whole_nbytes(self) -> int:
        """Count the bytes of the positions of the whole consensus, of which each rank of a host holds some."""
        return self.layers.host.sums([positions_nbytes(self.total, int(self.mask.count_nonzero()))])[0]

    @property
    def have_begun(self) -> bool:
        """Tell whether there is a first mask."""
        return self.downlink.has_begun

    def by_name(self) -> dict[str, Tensor]:
        """Return the consensus of each prunable weight, float32 in its shape; empty if masks are personal.

        All ranks of a host call it, and its first one is given them. Names are those of the buffers of nn.utils.prune.
        """
        if self.method.is_personal:
            return {}
        host = self.layers.host
        named = {}
        for entry, own in zip(self.layers.whole, layers_of(self.mask, self.layers)):
            whole = host.gather(own.to(torch.uint8))
            if host.shard == 0:
                named[f"{entry.name}_mask"] = whole.float().view(entry.shape)
        return named

    def personal(self, client: int) -> Tensor:
        """Return a client's own mask, bool [total]; at first all have the same."""
        if client not in self._personal:
            return self.mask
        return unpack_bits(self._personal[client])[: self.total]

    def move(self, moves: Moves, server: SparseServer, clients: ClientMasks | None, squares: Tensor | None) -> None:
        """Make the next consensus if it is due, and apply it; the union of personal masks is left as it is."""
        if self.method.is_personal:
            return
        if moves.server:
            mask = next_mask(self, moves.rate, server.parameters.data, clients, squares)
            self.downlink.change(self.layers.host.sums([change_between(self.mask, mask)])[0])
            self.mask = mask
        self.apply(server)

    def apply(self, server: SparseServer) -> None:
        """Mask the model, and the server optimizer's state, by the consensus."""
        server.parameters.data.mul_(self.mask)
        self.dropped_moments = server.forget_outside(self.mask)

    def remember(self, accepted: Sequence[int], clients: ClientMasks | None) -> None:
        """Keep the masks of the accepted clients if they are personal; every rank calls it."""
        if self.method.is_personal and clients:
            for client, mask in zip(accepted, clients.masks):
                self._personal[client] = set_bits(mask.nonzero().squeeze(1), self.total)

    def report(self, parameters: Tensor, clients: ClientMasks | None = None, mask_bytes: int = 0) -> dict[str, Any]:
        """Return the masks' part of a round's row; this rank sent `mask_bytes` for their sake."""
        active = layer_counts(parameters if self.method.is_personal else self.mask, self.layers)
        mask_bytes, dropped_moments = self.layers.host.sums([mask_bytes, self.dropped_moments])
        return {
            "active_weights": sum(active),
            "mask_mismatch": mask_mismatch(clients.masks, self.layers) if clients else 0.0,
            "mask_bytes": mask_bytes,
            "dropped_moments": dropped_moments,
            "layer_densities": {e.name: count / e.numel for e, count in zip(self.layers.whole, active)},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves; references, not copies."""
        state = {"mask": self.mask, "personal": self._personal, "of": self._origin()}
        return state | self.downlink.state_dict()

    def _origin(self) -> dict[str, Any]:
        """Return the settings without which the masks mean something else."""
        names = [entry.name for entry in self.layers.whole]
        settings = {key: getattr(self.config, key) for key in ("method", "density", "counts")}
        return settings | {"prunable weights": names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; a dense run's checkpoint holds nothing, and masks begin anew.

        Raises ValueError if those masks are not the ones that the configuration asks for.
        """
        if not state:
            return
        for key, value in self._origin().items():
            if state["of"][key] != value:
                shown = "other ones" if key == "prunable weights" else f"{state['of'][key]}, not {value}"
                raise ValueError(
                    f"checkpoint.resume: the masks in the checkpoint have another sparse_training ({key}: {shown}); "
                    "keep its settings, or go on from a dense run"
                )
        self.mask = state["mask"].to(self.device, copy=True)
        self.downlink.load_state_dict(state)
        self._personal = {client: bits.to(self.device, copy=True) for client, bits in state["personal"].items()}
