"""One client's compression: error feedback around a sparsifier, with this round's randomness."""

from __future__ import annotations

from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.error_feedback import ERROR_FEEDBACK, Rule, State
from flare_dist.compression.sparsifiers import SCOPES, SPARSIFIERS, select
from flare_dist.layout import ParameterLayout
from flare_dist.seeding import generator


class Compressor:
    """Turns model deltas of one layout into index/value pairs.

    `max_kept` is the most pairs that one client can send; `state_names` are the vectors that a client remembers.
    """

    def __init__(self, config: CompressionConfig, layout: ParameterLayout, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.segments = [] if config.is_dense else SCOPES[config.scope](layout, config.density)
        self.max_kept = sum(segment.k for segment in self.segments)
        self.state_names: tuple[str, ...] = ()
        self.rule: Rule | None = None
        if not config.is_dense:
            self.state_names, self.rule = ERROR_FEEDBACK[config.rule]

    def compress(self, round_: int, client: int, model_delta: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """(sorted int64 indices, float32 values) of what is sent; updates `state` in place.

        `model_delta` must be finite. A memory kept on another device is brought over for the moment.
        """
        assert self.rule is not None, "dense deltas are summed, not compressed"
        draws = generator(self.seed, "sparsifier", round_, client)

        def choose(update: Tensor) -> Tensor:
            return select(update, self.segments, SPARSIFIERS[self.config.sparsifier], draws, self.config.threshold)

        local = {name: vector.to(model_delta.device) for name, vector in state.items()}
        indices, values = self.rule(model_delta, local, choose)
        for name, vector in state.items():
            if vector is not local[name]:
                vector.copy_(local[name])
        return indices, values
