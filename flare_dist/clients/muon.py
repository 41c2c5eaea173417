"""Muon for the matrices of a model, and AdamW for everything else.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon/
As the inner optimizer of local steps: Benjamin Therien, Xiaolong Huang, Irina Rish, Eugene Belilovsky, "MuLoCo: Muon is
a practical inner optimizer for DiLoCo", 2025, https://arxiv.org/abs/2505.23725

The momentum of a matrix is orthogonalised before it is stepped by. Embeddings, the output layer, vectors and kernels of
convolutions are no such matrices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from flare_dist.errors import check_choice, check_range
from flare_dist.schedules import remember_factors

log = logging.getLogger(__name__)

KEY = "clients.optimizer"
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
RATES = ("original", "match_rms_adamw")
Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class MuonConfig:
    """Settings of the muon optimizer; clients.lr is the learning rate of Muon, clients.weight_decay that of both.

    Args:
        momentum: Muon's, Nesterov's.
        adjust_lr: how a matrix's shape changes its rate: original (times the root of rows / columns, at least 1), or
            match_rms_adamw (so that AdamW's rate does for it).
        adamw: name patterns of the matrices that AdamW steps, e.g. "*.embed.weight" (null = those of embeddings, and
            the last linear layer).
        adamw_lr: learning rate of AdamW; it follows clients.lr_schedule, too.
        adamw_betas: decay of AdamW's first and second moment.
    """

    momentum: float = 0.95
    adjust_lr: str = "original"
    adamw: tuple[str, ...] | None = None
    adamw_lr: float = 3e-4
    adamw_betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        check_range("clients.muon.momentum", self.momentum, "[0, 1)")
        check_choice("clients.muon.adjust_lr", self.adjust_lr, RATES)
        check_range("clients.muon.adamw_lr", self.adamw_lr, "(0, 1e38)")
        for beta in self.adamw_betas:
            check_range("clients.muon.adamw_betas", beta, "[0, 1)")


class Both(Optimizer):
    """Step some weights by one optimizer and the others by another, with the groups and the state of both."""

    def __init__(self, *parts: Optimizer) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step all weights by their gradients."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.state = self.state  # which loading replaces
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.step()


def check_muon() -> None:
    """Raise ValueError that says what to install if PyTorch has no Muon."""
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"{KEY}: torch.optim of PyTorch {torch.__version__} has no Muon, got muon; install torch 2.9 or later, or "
            "use adamw"
        )


def muon_of(config: MuonConfig, model: nn.Module) -> Callable[[Named, float, float, float], Optimizer]:
    """Return what makes the optimizer of (named parameters, lr, momentum, weight decay) of `model`."""
    by_adamw = set(_names_for_adamw(config, model))

    def make(named: Named, lr: float, momentum: float, weight_decay: float) -> Optimizer:
        return make_muon(config, named, by_adamw, lr, weight_decay)

    return make


def make_muon(config: MuonConfig, named: Named, by_adamw: set[str], lr: float, weight_decay: float) -> Optimizer:
    """Make Muon of the matrices among `named` but those `by_adamw`, and AdamW of the rest.

    Raises ValueError if no matrix is left.
    """
    matrices = [p for name, p in named if p.ndim == 2 and name not in by_adamw]
    others = [p for name, p in named if not (p.ndim == 2 and name not in by_adamw)]
    if not matrices:
        raise ValueError(
            f"{KEY}: Muon steps matrices, and the model has none beside those of clients.muon.adamw (embeddings, the "
            "last linear layer), got muon; use adamw"
        )
    log.info("muon steps %d matrices, adamw the other %d weights", len(matrices), len(others))
    muon = torch.optim.Muon(matrices, lr, weight_decay, config.momentum, adjust_lr_fn=config.adjust_lr)
    parts: list[Optimizer] = [muon]
    if others:
        parts.append(AdamW(others, config.adamw_lr, config.adamw_betas, weight_decay=weight_decay))
    optimizer = Both(*parts)
    remember_factors(optimizer, lr)
    return optimizer


def _names_for_adamw(config: MuonConfig, model: nn.Module) -> Iterator[str]:
    """Yield the names of the weights, matrices or not, that are left to AdamW."""
    given = config.adamw
    left = set() if given is not None else {id(weight) for weight in _ends_of(model)}
    for name, weight in model.named_parameters():
        if id(weight) in left or any(fnmatch(name, pattern) for pattern in given or ()):
            yield name


def _ends_of(model: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of embeddings and of the output layer: the last linear one, unless it is one of them."""
    for module in model.modules():
        if isinstance(module, EMBEDDINGS):
            yield module.weight
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if linear:
        yield linear[-1].weight
