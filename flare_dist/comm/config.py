"""How data-parallel training exchanges its gradients."""

from __future__ import annotations

from dataclasses import dataclass

from flare_dist.compression.preconditioners import Preconditioning
from flare_dist.errors import check_choice, check_least

HOOKS = ("sparse", "fp16", "bf16", "powersgd")


@dataclass(frozen=True)
class GradientsConfig:
    """How mode gradient exchanges gradients.

    Args:
        hook: sparse (by the keys under compression) or, to compare with, a hook that comes with PyTorch: fp16 or
            bf16 (all gradients, rounded) or powersgd (matrices of low rank with error feedback, Vogels et al. 2019).
        powersgd_rank: rank of powersgd's matrices.
        powersgd_start: steps that powersgd leaves dense.
        find_unused_parameters: whether parameters may be without gradients in some steps, as in models that skip
            layers; found out before training if every few steps leave one out.
        preconditioner: of hook sparse: none, or adam: each rank's gradient becomes Adam's update before error
            feedback, in place of clients.optimizer=adamw, which then is sgd without momentum.
        betas: of adam; beta1 must be 0, for what waits in the residual acts as momentum.
        eps: of adam; added to the root of the second moment.
        update_clip: largest magnitude of an entry of adam's update; inf for none.
        clip_norm: of hook sparse without preconditioner: the norm to which each rank clips its whole gradient before
            error feedback, known with its last bucket; clients.gradient_clipping clips what arrives instead.
    """

    hook: str = "sparse"
    powersgd_rank: int = 1
    powersgd_start: int = 10
    find_unused_parameters: bool = False
    preconditioner: str = "none"
    betas: tuple[float, float] = (0.0, 0.99)
    eps: float = 1e-8
    update_clip: float = 3.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_choice("gradients.hook", self.hook, HOOKS)
        check_least("gradients.powersgd_rank", self.powersgd_rank, 1)
        check_least("gradients.powersgd_start", self.powersgd_start, 2)  # PyTorch's own bound
        object.__setattr__(self, "betas", self.preconditioning.betas)

    @property
    def preconditioning(self) -> Preconditioning:
        """Return the settings of the sparse hook's preconditioner; raises ValueError if they are out of range."""
        return Preconditioning(self.preconditioner, self.betas, self.eps, self.update_clip, self.clip_norm)
