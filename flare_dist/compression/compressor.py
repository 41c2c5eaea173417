"""One client's compression: error feedback around a sparsifier and the codecs, with this round's randomness."""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.error_feedback import State
from flare_dist.compression.masked import MaskedForm, active_layout
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import Dense, Payload, Sparse
from flare_dist.compression.plan import Plan, plan
from flare_dist.compression.sparsifiers import SPARSIFIERS
from flare_dist.layout import ParameterLayout
from flare_dist.seeding import generator


class Compressor:
    """Turns model deltas of one layout into payloads.

    `state_names` are the vectors that a client remembers, none where everything is sent; where `estimated`, payloads
    are changes of an estimate that the server keeps as well.
    """

    def __init__(
        self, config: CompressionConfig, layout: ParameterLayout, seed: int, device: torch.device | None = None
    ) -> None:
        self.config = config
        self.layout = layout
        self.seed = seed
        self.device = device or torch.device("cpu")
        densities = () if config.is_dense else {*config.warmup, config.density}  # a dense delta is sent as it is
        self._plans = {d: plan(config, layout, d, self.device) for d in densities}
        self.state_names, self.rule, self.estimated = config.feedback

    def plan(self, round_: int) -> Plan:
        """What is selected from in a round, and how it is written; not of dense updates."""
        return self._plans[self.config.density_in(round_)]

    @property
    def final_plan(self) -> Plan:
        """That of the density which a warm-up leads to."""
        return self._plans[self.config.density]

    def plan_within(self, round_: int, mask: Tensor) -> Plan:
        """The plan of a round of a sparse model, of which only what is active in `mask` (bool [total]) is there."""
        return plan(self.config, active_layout(self.layout, mask), self.config.density_in(round_), self.device)

    def most_nbytes_of(self, round_: int, active: int) -> int:
        """No payload of a sparse model with at most `active` active entries is longer, wherever they lie."""
        config, tensors = self.config, len(self.layout.entries)
        kept = active
        if not config.sends_everything and config.sparsifier != "auto":
            # Each tensor rounds by itself, may be sent whole if it is short, and its blocks round as well.
            blocks = active // config.block if config.scope == "block" else 0
            slack = tensors * (2 + config.dense_below) + 2 * blocks
            kept = min(active, int(active * config.density_in(round_)) + slack)
        whole = torch.arange(active if config.sends_everything else 0)
        return Packing(config, active, whole, torch.zeros(tensors)).most_nbytes(kept)

    def compress(
        self,
        round_: int,
        client: int,
        model_delta: Tensor,
        state: State,
        form: MaskedForm | None = None,
        mask: Tensor | None = None,
    ) -> Payload:
        """What is sent of `model_delta` (float32 [total], finite); updates `state` in place.

        A dense payload is the delta itself, not a copy. Of a sparse model the payload has that `form`, and `mask` (bool
        [total]) is what the client's has become; `state` is zero outside it.
        """
        if form is None or mask is None:
            if self.config.is_dense:
                return Dense(model_delta)
            return self._select(self.plan(round_), round_, client, model_delta, state)
        active = form.active_in(mask)
        delta = model_delta[active]
        if self.config.is_dense and form.is_common:
            return Dense(delta)
        kept = {name: state[name][active] for name in self.state_names}
        payload = self._select(self.plan_within(round_, mask), round_, client, delta, kept)
        for name, vector in kept.items():
            state[name].index_copy_(0, active, vector)
        return form.wrap(payload, mask)

    def _select(self, plan_: Plan, round_: int, client: int, model_delta: Tensor, state: State) -> Sparse:
        """Error feedback around the selection by a plan."""
        draws = generator(self.seed, "sparsifier", round_, client)
        rounding = None if self.state_names else generator(self.seed, "rounding", round_, client)
        packing, sparsifier = plan_.packing, SPARSIFIERS[self.config.sparsifier]

        def sparsify(vector: Tensor) -> Sparse:
            indices = plan_.choose(vector, sparsifier, lambda segment: draws, self.config.threshold)
            uniform = None if rounding is None else torch.rand(len(indices), generator=rounding)
            return packing.pack(indices, vector[indices], uniform)

        return self.rule(self.config, model_delta, state, sparsify)
