"""The masks of a run: the server's, those that clients train under, and what becomes of both.

The consensus mask is part of the server's state. Where clients move their masks the new ones come with their payloads;
the server then averages their models and, with jmwst, prunes the aggregate to the next consensus.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flare_dist.compression.bits import set_bits, unpack_bits
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.masked import MaskedForm, positions_nbytes
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import WORD
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.seeding import generator
from flare_dist.server.aggregation import UPDATE_MODES, GatheredMasks
from flare_dist.server.mask_downlink import MaskDownlink
from flare_dist.server.server import Server
from flare_dist.sparse_training import flash
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.learner import SparseLearner, most_moved
from flare_dist.sparse_training.masks import budget, everything_but, largest_mask, layer_counts, mask_mismatch
from flare_dist.sparse_training.methods import METHODS
from flare_dist.sparse_training.pruning import layer_shares
from flare_dist.sparse_training.readjust import readjusted_mask
from flare_dist.sparse_training.schedule import MaskSchedule, falling_rates


@dataclass(frozen=True)
class Assignment:
    """What a client trains in a round."""

    form: MaskedForm  # of its payload, with the mask to start with
    budget: int  # prunable weights that are to be active after a mask update
    rates: dict[int, float]  # the local steps after which the mask is updated, and how much of it goes


class Masks:
    """The masks of a run on this rank; `mask`, bool [total], is the consensus, or where masks are personal the first.

    Call `begin` once, or `load_state_dict`, and in each round `assign`, `learner` for
    each client, `to_mean_of_models`, `settle`, `remember`.
    `uses`, of methods that measure, says how often an example uses a weight of each entry.
    """

    def __init__(
        self,
        config: SparseTrainingConfig,
        entries: Sequence[Entry],
        total: int,
        seed: int,
        rounds: int,
        device: torch.device,
        uses: Sequence[float] = (),
    ) -> None:
        self.config = config
        self.method = METHODS[config.method]
        self.schedule = MaskSchedule(config, rounds)
        self.entries = entries
        self.total = total
        self.seed = seed
        self.device = device
        self.uses = uses
        self.mask = everything_but(entries, total, device)  # none yet
        self.dropped_moments = 0  # entries of the server optimizer's state, in the last step
        self._personal: dict[int, Tensor] = {}  # client -> the bits of its own mask, where masks are personal
        self._factor = torch.empty(total, device=device)  # of the client that is training
        self._downlink = MaskDownlink()

    def begin(self, densities: Sequence[float] | None) -> None:
        """Draw the consensus of these densities, or the random mask of methods that have no stage 1."""
        draws = generator(self.seed, "consensus mask")
        drawn = densities or [self.config.density] * len(self.entries)
        if self.method.densities == "erk":
            drawn = flash.budget_densities(self.config, self.entries, layer_shares("erk", self.entries) or [])
        self.mask = flash.drawn_mask(self.config, self.entries, drawn, self.total, draws, self.device)
        self._downlink.begin(WORD * len(drawn) if densities else 0)  # the densities, from which it is drawn

    def begin_with(self, mask: Tensor) -> None:
        """Take this mask as the consensus; clients are told its positions."""
        self.mask = mask
        self._downlink.begin(positions_nbytes(self.total, int(mask.count_nonzero())))

    @property
    def have_begun(self) -> bool:
        return self._downlink.has_begun

    def by_name(self, layout: ParameterLayout) -> dict[str, Tensor]:
        """The consensus of each prunable weight, float32 in its shape, by the name of its buffer in nn.utils.prune."""
        prunable = {entry.name for entry in self.entries}
        return {f"{name}_mask": view.float() for name, view in layout.views(self.mask) if name in prunable}

    def assign(
        self, round_: int, steps: Mapping[int, tuple[int, int]], parameters: Tensor, compressor: Compressor
    ) -> dict[int, Assignment]:
        """What each client trains, by its (local steps, steps of an epoch); those that are alike share a form."""

        def packing_of(mask: Tensor) -> Packing:
            return compressor.plan_within(round_, mask).packing

        factors = flash.budgets_of(self.config, list(steps), round_, self.seed)
        budgets = flash.nested_masks(self.config, self.entries, parameters, self.mask)
        forms: dict[tuple[float, int, int], MaskedForm] = {}
        assigned = {}
        for client, (count, epoch) in steps.items():
            factor = factors[client]
            keep = budget(self.config, self.entries, factor)
            rates = self.schedule.rates(round_, count, epoch)
            kind = (factor, count if rates else 0, client if self.method.is_personal else -1)
            if kind not in forms:
                mask = self._own_mask(client) if self.method.is_personal else budgets[factor]
                removed, grown = self._most_moved(mask, keep, rates) if rates else (0, 0)
                is_common = not self.schedule.clients_move_in(round_) and set(factors.values()) == {1.0}
                forms[kind] = MaskedForm(mask, packing_of, removed, grown, is_common)
            assigned[client] = Assignment(forms[kind], keep, rates)
        return assigned

    def _most_moved(self, mask: Tensor, keep: int, rates: Mapping[int, float]) -> tuple[int, int]:
        """The most weights that leave and that enter what is known while a client trains."""
        active, rounding = sum(layer_counts(mask, self.entries)), len(self.entries)
        removed = most_moved(rates, active, keep)
        return removed, removed + max(0, keep - active) + rounding

    def learner(self, round_: int, client: int, assignment: Assignment) -> SparseLearner:
        """How a client trains."""
        draws, mask, keep = generator(self.seed, "growth", round_, client), assignment.form.mask, assignment.budget
        measures = self.schedule.measures_in(round_)
        return SparseLearner(self.config, self.entries, mask, keep, assignment.rates, draws, self._factor, measures)

    def most_nbytes(self, round_: int, assigned: Mapping[int, Assignment], compressor: Compressor) -> int:
        """No payload of the round is longer."""
        dense = self.total - sum(entry.numel for entry in self.entries)
        most = 0
        for form, keep in {(a.form, a.budget) for a in assigned.values()}:
            active = form.active.numel()
            if form.moves:
                active = max(active, dense + keep) + len(self.entries)
            most = max(most, form.most_nbytes(compressor.most_nbytes_of(round_, active)))
        return most

    def scout(self, client: int, steps: int, epoch_steps: int) -> SparseLearner:
        """How a client trains in stage 1: under a random mask of its own, of the same density in each layer."""
        draws = generator(self.seed, "scout mask", client=client)
        even = [self.config.density] * len(self.entries)
        mask = flash.drawn_mask(self.config, self.entries, even, self.total, draws, self.device)
        keep, rates = budget(self.config, self.entries), falling_rates(self.config.prune_rate, steps, epoch_steps)
        return SparseLearner(self.config, self.entries, mask, keep, rates, draws, self._factor)

    def downlink_nbytes(self, assigned: Mapping[int, Assignment]) -> int:
        """What a star sends to a round's cohort: active weights in float32 and masks; call it once a round.

        A smaller budget's mask is told by its positions in the consensus; a personal one both sides hold.
        """
        if self.method.is_personal:
            return sum(WORD * assignment.form.active.numel() for assignment in assigned.values())
        consensus = int(self.mask.count_nonzero())
        whole, nbytes = positions_nbytes(self.total, consensus), 0
        for client, assignment in assigned.items():
            active = assignment.form.active.numel()
            nbytes += WORD * active + (positions_nbytes(consensus, active) if active < consensus else 0)
            nbytes += self._downlink.nbytes_to(client, whole)
        return nbytes

    def to_mean_of_models(self, mean_delta: Tensor, parameters: Tensor, gathered: GatheredMasks | None) -> None:
        """From the mean of what clients sent to that of their models, less the global `parameters`; in place.

        The two differ where the clients' masks do, of which `gathered` tells.
        """
        if gathered:
            UPDATE_MODES[self.config.resolved_update_mode](mean_delta, parameters, gathered)

    def settle(
        self, round_: int, server: Server, gathered: GatheredMasks | None = None, squares: Tensor | None = None
    ) -> None:
        """Make the next consensus where it is time to, and mask the model and the server optimizer's state by it.

        The union of personal masks is left as it is.
        """
        self.dropped_moments = 0
        if self.method.is_personal and round_:
            return
        parameters = server.parameters.data
        if self.schedule.server_moves_in(round_):
            mask = self._next_mask(round_, parameters, gathered, squares)
            self._downlink.change(self.mask, mask)
            self.mask = mask
        parameters.mul_(self.mask)
        self.dropped_moments = server.forget_outside(self.mask)

    def _next_mask(
        self, round_: int, parameters: Tensor, gathered: GatheredMasks | None, squares: Tensor | None
    ) -> Tensor:
        """The largest weights of the aggregate, among those that any client has; or by what the clients measured."""
        if self.method.is_measured:
            if squares is None:  # nobody's were finite
                return self.mask
            rate, active = self.schedule.rate(round_), sum(layer_counts(self.mask, self.entries))
            return readjusted_mask(self.entries, parameters, self.mask, squares, self.uses, rate, active)
        assert gathered is not None
        union = gathered.union()
        if self.method.keeps_layers:
            return largest_mask(parameters, self.entries, layer_counts(self.mask, self.entries), union)
        if self.config.subsample == "avg":
            counts = [layer_counts(mask, self.entries) for mask in gathered.masks]
            shares = [math.fsum(map(operator.mul, gathered.weights, layer)) for layer in zip(*counts)]
            shares = [share / math.fsum(gathered.weights) for share in shares]
        else:
            shares = [float(count) for count in layer_counts((parameters != 0) & union, self.entries)]
        keep = budget(self.config, self.entries)
        return flash.projected_mask(self.config, self.entries, parameters, union, shares, keep)

    def remember(self, accepted: Sequence[int], gathered: GatheredMasks | None) -> None:
        """Keep the masks of the clients that were accepted, where they are personal; on every rank."""
        if self.method.is_personal and gathered:
            for client, mask in zip(accepted, gathered.masks):
                self._personal[client] = set_bits(mask.nonzero().squeeze(1), self.total)

    def _own_mask(self, client: int) -> Tensor:
        """A client's personal mask; at first all have the same."""
        if client not in self._personal:
            return self.mask
        return unpack_bits(self._personal[client])[: self.total]

    def report(self, parameters: Tensor, gathered: GatheredMasks | None = None, mask_bytes: int = 0) -> dict[str, Any]:
        """What a round's row says of masks, `mask_bytes` having been sent for their sake."""
        active = layer_counts(parameters if self.method.is_personal else self.mask, self.entries)
        return {
            "active_weights": sum(active),
            "mask_mismatch": mask_mismatch(gathered.masks, self.entries) if gathered else 0.0,
            "mask_bytes": mask_bytes,
            "dropped_moments": self.dropped_moments,
            "layer_densities": {e.name: count / e.numel for e, count in zip(self.entries, active)},
        }

    def published(self) -> Tensor:
        """The consensus as uint8 [total], to be sent to ranks that do not step the server."""
        return self.mask.to(torch.uint8)

    def adopt(self, published: Tensor) -> None:
        self.mask = published.bool()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint saves; references, not copies."""
        return {
            "mask": self.mask,
            "personal": self._personal,
            "of": self._origin(),
        } | self._downlink.state_dict()

    def _origin(self) -> dict[str, Any]:
        """The settings without which the masks mean something else."""
        names = [entry.name for entry in self.entries]
        settings = {key: getattr(self.config, key) for key in ("method", "density", "counts")}
        return settings | {"prunable weights": names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; ValueError where those masks are not what the configuration asks for."""
        for key, value in self._origin().items():
            if state["of"][key] != value:
                shown = "other ones" if key == "prunable weights" else f"{state['of'][key]}, not {value}"
                raise ValueError(
                    f"checkpoint.resume: the masks in the checkpoint have another sparse_training ({key}: {shown}); "
                    "keep its settings, or go on from a dense run"
                )
        self.mask = state["mask"].to(self.device, copy=True)
        self._downlink.load_state_dict(state)
        self._personal = {client: bits.to(self.device, copy=True) for client, bits in state["personal"].items()}
