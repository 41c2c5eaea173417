"""One client's compression: error feedback around a sparsifier, with this round's randomness."""

from __future__ import annotations

from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.error_feedback import State
from flare_dist.compression.payload import Payload
from flare_dist.compression.sparsifiers import SCOPES, SPARSIFIERS, Segment, select
from flare_dist.layout import ParameterLayout
from flare_dist.seeding import generator


class Compressor:
    """Turns model deltas of one layout into payloads.

    `state_names` are the vectors that a client remembers, none where everything is sent; where `estimated`, payloads
    are changes of an estimate that the server keeps as well.
    """

    def __init__(self, config: CompressionConfig, layout: ParameterLayout, seed: int) -> None:
        self.config = config
        self.seed = seed
        scope = SCOPES[config.scope]
        self._segments = {
            density: scope(layout, density, config.count_kept) for density in (*config.warmup, config.density)
        }
        self.state_names, self.rule, self.estimated = config.feedback

    def segments(self, round_: int) -> list[Segment]:
        """What is selected from in a round, and how much."""
        return [] if self.config.is_dense else self._segments[self.config.density_in(round_)]

    def max_kept(self, round_: int) -> int:
        """The most pairs that one client can send in a round."""
        return sum(segment.k for segment in self.segments(round_))

    def compress(self, round_: int, client: int, model_delta: Tensor, state: State) -> Payload:
        """What is sent of `model_delta` (float32 [total], finite); updates `state` in place.

        A dense payload is the delta itself, not a copy.
        """
        draws = generator(self.seed, "sparsifier", round_, client)

        def sparsify(vector: Tensor) -> Payload:
            if self.config.is_dense:
                return Payload(None, vector)
            sparsifier = SPARSIFIERS[self.config.sparsifier]
            indices = select(vector, self.segments(round_), sparsifier, draws, self.config.threshold)
            return Payload(indices.int(), vector[indices])

        return self.rule(self.config, model_delta, state, sparsify)
