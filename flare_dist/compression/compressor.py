"""One client's compression: error feedback around a sparsifier and the codecs, with this round's randomness."""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.error_feedback import State
from flare_dist.compression.payload import Dense, Payload, Sparse
from flare_dist.compression.plan import Plan, plan
from flare_dist.layout import ParameterLayout
from flare_dist.seeding import generator


class Compressor:
    """The way from model deltas of one layout to payloads.

    `state_names` are the vectors that a client remembers, none if everything is sent.
    """

    def __init__(
        self, config: CompressionConfig, layout: ParameterLayout, seed: int, device: torch.device | None = None
    ) -> None:
        self.config = config
        self.layout = layout
        self.seed = seed
        self.device = device or torch.device("cpu")
        self.is_dense = config.is_dense  # a dense delta is sent as it is
        densities = () if self.is_dense else {*config.warmup, config.density}
        self._plans = {d: plan(config, layout, d, self.device) for d in densities}
        self.state_names, self.rule = config.feedback

    def plan(self, round_: int) -> Plan:
        """Return what a round selects from, and how it is written; not for dense updates."""
        return self._plans[self.config.density_in(round_)]

    @property
    def final_plan(self) -> Plan:
        """Return the plan of the density that a warm-up leads to."""
        return self._plans[self.config.density]

    def compress(self, round_: int, client: int, model_delta: Tensor, memory: State) -> Payload:
        """Compress `model_delta` (float32 [total], finite); updates the client's `memory` in place.

        A dense payload is the delta itself, not a copy.
        """
        if self.is_dense:
            return Dense(model_delta)
        return self.select(self.plan(round_), round_, client, model_delta, memory)

    def select(self, plan_: Plan, round_: int, client: int, model_delta: Tensor, memory: State) -> Sparse:
        """Select by a plan, with error feedback around it; updates `memory` in place."""
        draws = generator(self.seed, "sparsifier", round_, client)
        rounding = None if self.state_names else generator(self.seed, "rounding", round_, client)

        def sparsify(vector: Tensor) -> Sparse:
            indices = plan_.choose(vector, lambda segment: draws)
            uniform = None if rounding is None else torch.rand(len(indices), generator=rounding)
            return plan_.packing.pack(indices, vector[indices], uniform)

        return self.rule(self.config, model_delta, memory, sparsify)
