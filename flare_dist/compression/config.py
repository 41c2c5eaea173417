"""The configuration of what is sent of a model delta, and how it is encoded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from flare_dist.compatibility import EXCLUSIONS
from flare_dist.compression.choices import find_error_feedback, find_index_codecs, find_sparsifier, find_value_codec
from flare_dist.compression.error_feedback import ERROR_FEEDBACK, ErrorFeedback
from flare_dist.compression.index_codecs import smallest
from flare_dist.compression.packing import Codecs
from flare_dist.compression.segments import COUNTS, SCOPES
from flare_dist.compression.sparsifiers import Sparsifier
from flare_dist.errors import check_choice, check_least, check_range
from flare_dist.exclusion import refuse
from flare_dist.named import Options, name_of

DOWNLINKS = ("dense", "fp16", "changed", "topk")


@dataclass(frozen=True)
class CompressionConfig:
    """The part of a client's model delta that travels to the server, and its encoding.

    Args:
        sparsifier: dense (everything), topk (largest magnitudes), randk (a fresh random set each round), threshold
            (magnitudes of at least `threshold`, at most `density` of the entries) or auto (topk, but tensors whole
            whose indices would cost more than the values that they save), or your own as package.module:callable, which
            is called with (vector, k, generator, **options) and returns ascending positions, at most k.
        sparsifier_options: keyword arguments of your own sparsifier.
        density: fraction of the entries KEPT, in (0, 1]; smaller = more compression. Read as an exact decimal.
        scope: tensor (each parameter tensor keeps its own share), block (each block of `block` entries of a tensor
            keeps its own), row (each row of a tensor's dimension 0 keeps its own, and biases and norms are sent whole:
            the same is sent however many ranks share a model by rows) or global (one selection over the whole model).
        block: entries of a block, for scope block and the packed index codec; SparseLoCo takes 4096.
        count: how many of n entries are kept: ceil, which is ceil(n * density), or paper, which is FLARE's
            round(n * density) + 1.
        dense_below: tensors of at most so many entries (biases, norms) are sent whole; needs scope tensor.
        threshold: smallest magnitude that the threshold sparsifier sends.
        error_feedback: ec (what is not sent is remembered by the client and added to its next delta), dgc (the same
            with momentum), ef21 (what is sent is the change of an estimate that client and server both hold) or none
            (it is lost); true and false mean ec and none. Or your own as package.module:callable, which is called with
            (**options) and returns a flare_dist.ErrorFeedback.
        error_feedback_options: keyword arguments of your own error feedback.
        residual_decay: factor on the residual of ec before a new delta is added, in (0, 1]; SparseLoCo takes 0.95.
        momentum: of dgc (0.9 if not given), which then needs clients.momentum 0; with 0 it is ec.
        index_codec: how positions are written: elias_fano (at most 0.6 bit an index above the least possible), bitmap,
            packed (within a `block`: 12 bits for 4096), block16 (16), int32, or auto, the smallest. All are lossless.
            Or your own as package.module:callable, which is called with (**options) and returns a
            flare_dist.IndexCodec.
        index_codec_options: keyword arguments of your own index codec.
        value_codec: how values are written: fp32, fp16, bf16, int8, 4bit, 2bit or sign (one bit). What they lose is
            sent later, by error feedback; without it int8 rounds at random, so that its mean is right. Or your own as
            package.module:callable, which is called with (**options) and returns a flare_dist.ValueCodec.
        value_codec_options: keyword arguments of your own value codec.
        value_block: of codecs with fewer than 16 bits, how many consecutive values share a table of levels; 0 =
            those of a tensor.
        downlink: how the global parameters come to the clients: dense (float32), fp16, changed (the entries that
            changed since a client last took part, without loss) or topk (the largest changes,
            at `downlink_density` and by the codecs above; what is left follows later, so that clients train on, and we
            evaluate, a view of them).
        downlink_density: fraction of the entries that the topk downlink sends in a round, in (0, 1].
        warmup: densities of the first rounds, before `density`, e.g. [0.25, 0.063, 0.015, 0.004].
        warmup_rounds: rounds that each of them lasts; in mode gradient and in the hook, steps.
    """

    sparsifier: str = "topk"
    sparsifier_options: Options = field(default_factory=dict, hash=False)
    density: float = 0.01
    scope: str = "tensor"
    block: int = 4096
    count: str = "ceil"
    dense_below: int = 0
    threshold: float = 0.0
    error_feedback: bool | str = "ec"
    error_feedback_options: Options = field(default_factory=dict, hash=False)
    residual_decay: float = 1.0
    momentum: float | None = None
    index_codec: str = "auto"
    index_codec_options: Options = field(default_factory=dict, hash=False)
    value_codec: str = "fp32"
    value_codec_options: Options = field(default_factory=dict, hash=False)
    value_block: int = 0
    downlink: str = "dense"
    downlink_density: float = 0.01
    warmup: tuple[float, ...] = ()
    warmup_rounds: int = 1

    def __post_init__(self) -> None:
        # The density is read as the decimal that repr prints, and NumPy's numbers print another text.
        object.__setattr__(self, "density", float(self.density))
        object.__setattr__(self, "warmup", tuple(map(float, self.warmup)))
        find_sparsifier(self.sparsifier, self.sparsifier_options)
        check_range("compression.density", self.density, "(0, 1]")
        check_choice("compression.scope", self.scope, SCOPES)
        check_range("compression.block", self.block, "[2, 2147483648]")
        check_choice("compression.count", self.count, COUNTS)
        check_least("compression.dense_below", self.dense_below, 0)
        check_least("compression.threshold", self.threshold, 0)
        find_error_feedback(self._rule, self.error_feedback_options)
        check_range("compression.residual_decay", self.residual_decay, "(0, 1]")
        check_range("compression.momentum", self.momentum, "[0, 1)")
        find_index_codecs(self.index_codec, self.index_codec_options, self.block)
        find_value_codec(self.value_codec, self.value_codec_options)
        check_least("compression.value_block", self.value_block, 0)
        check_choice("compression.downlink", self.downlink, DOWNLINKS)
        check_range("compression.downlink_density", self.downlink_density, "(0, 1]")
        for density in self.warmup:
            check_range("compression.warmup", density, "(0, 1]")
        check_least("compression.warmup_rounds", self.warmup_rounds, 1)
        refuse(EXCLUSIONS, compression=self)

    @property
    def _rule(self) -> Any:
        if isinstance(self.error_feedback, bool):
            return "ec" if self.error_feedback else "none"
        return self.error_feedback

    @property
    def rule(self) -> str:
        """Return the name of the error-feedback rule, as it is written."""
        return name_of(self._rule)

    @property
    def selects(self) -> Sparsifier:
        """Return the sparsifier with its options."""
        return find_sparsifier(self.sparsifier, self.sparsifier_options)

    @property
    def codecs(self) -> Codecs:
        """Return the codecs by which payloads are written."""
        indices = find_index_codecs(self.index_codec, self.index_codec_options, self.block)
        return Codecs(indices, find_value_codec(self.value_codec, self.value_codec_options), self.value_block)

    @property
    def dgc_momentum(self) -> float:
        return 0.9 if self.momentum is None else self.momentum

    @property
    def feedback(self) -> ErrorFeedback:
        """Return the rule that applies: if everything is sent there is nothing to feed back."""
        if self.is_dense:
            return ERROR_FEEDBACK["none"]
        return find_error_feedback(self._rule, self.error_feedback_options)

    @property
    def of_downlink(self) -> CompressionConfig:
        """Return the settings by which a topk downlink selects and writes."""
        density = self.downlink_density
        return replace(self, sparsifier="topk", sparsifier_options={}, density=density, warmup=(), downlink="dense")

    @property
    def is_dense(self) -> bool:
        """Tell if every entry is sent as it is, so that ranks may sum their clients before the wire."""
        return self.value_codec == "fp32" and self.sends_everything

    @property
    def sends_everything(self) -> bool:
        return self.sparsifier == "dense" or (self.density == 1 and self.sparsifier != "threshold")

    def count_kept(self, numel: int, density: float) -> int:
        """Count the entries of a tensor of `numel` that are sent."""
        if numel <= self.dense_below or self.sends_everything:
            return numel
        kept = COUNTS[self.count](numel, density)
        return numel if self.sparsifier == "auto" and self._is_cheaper_whole(numel, kept) else kept

    def _is_cheaper_whole(self, numel: int, kept: int) -> bool:
        indices, values, _ = self.codecs
        index_nbytes = smallest(indices, numel, kept).nbytes(numel, kept)
        return index_nbytes + values.nbytes(kept, 1) >= values.nbytes(numel, 1)

    def is_whole(self, numel: int, kept: int) -> bool:
        """Tell if `kept` of `numel` entries are always all of them, so that their indices need not be sent."""
        return kept == numel and (self.sparsifier != "threshold" or numel <= self.dense_below)
