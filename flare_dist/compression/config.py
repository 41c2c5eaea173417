"""What of a model delta is sent, and in which form."""

from __future__ import annotations

from dataclasses import dataclass

from flare_dist.compression.error_feedback import ERROR_FEEDBACK
from flare_dist.compression.sparsifiers import SCOPES, SPARSIFIERS


@dataclass(frozen=True)
class CompressionConfig:
    """What of a client's model delta travels to the server.

    Args:
        sparsifier: dense (everything), topk (largest magnitudes), randk (a fresh random set each round) or threshold
            (magnitudes of at least `threshold`, at most `density` of the entries).
        density: fraction of the entries KEPT, in (0, 1]; smaller = more compression. Read as an exact decimal:
            ceil(n * density) entries of n are kept.
        scope: tensor (each parameter tensor keeps its own share) or global (one selection over the whole model).
        threshold: smallest magnitude that the threshold sparsifier sends.
        error_feedback: ec (what is not sent is remembered by the client and added to its next delta) or none (it is
            lost); true and false mean the same two.
    """

    sparsifier: str = "topk"
    density: float = 0.01
    scope: str = "tensor"
    threshold: float = 0.0
    error_feedback: bool | str = "ec"

    def __post_init__(self) -> None:
        if self.sparsifier != "dense" and self.sparsifier not in SPARSIFIERS:
            known = ", ".join(["dense", *SPARSIFIERS])
            raise ValueError(f"compression.sparsifier: unknown sparsifier {self.sparsifier!r} (choose from {known})")
        if not 0 < self.density <= 1:
            raise ValueError(f"compression.density: the fraction kept must be in (0, 1], got {self.density}")
        if self.scope not in SCOPES:
            raise ValueError(f"compression.scope: must be one of {', '.join(SCOPES)}, got {self.scope!r}")
        if not self.threshold >= 0:
            raise ValueError(f"compression.threshold: must not be negative, got {self.threshold}")
        if self.rule not in ERROR_FEEDBACK:
            known = ", ".join(ERROR_FEEDBACK)
            raise ValueError(f"compression.error_feedback: unknown rule {self.rule!r} (choose from {known})")

    @property
    def rule(self) -> str:
        """The error-feedback rule by name."""
        if isinstance(self.error_feedback, bool):
            return "ec" if self.error_feedback else "none"
        return self.error_feedback

    @property
    def is_dense(self) -> bool:
        """True where every entry is sent, so that ranks may sum their clients before the wire."""
        return self.sparsifier == "dense" or (self.density == 1 and self.sparsifier != "threshold")
