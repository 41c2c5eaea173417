"""How data-parallel training exchanges its gradients."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    hook: str = "sparse"
    powersgd_rank: int = 1
    powersgd_start: int = 10
    find_unused_parameters: bool = False

    def __post_init__(self) -> None:
        check_choice("gradients.hook", self.hook, HOOKS)
        check_least("gradients.powersgd_rank", self.powersgd_rank, 1)
        check_least("gradients.powersgd_start", self.powersgd_start, 2)  # PyTorch's own bound
