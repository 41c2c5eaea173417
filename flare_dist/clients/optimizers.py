"""Make local optimizers over the tensors that an engine trains, often one flat vector of them all.

The user's own takes (named_parameters, lr, **options), for it may treat a matrix otherwise than a bias, as Muon does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from flare_dist.clients.muon import MuonConfig, check_muon, muon_of
from flare_dist.named import Options, bind, call, expect, find, is_own
from flare_dist.schedules import remember_factors

Make = Callable[[list[Any], float, float, float], Optimizer]

KEY = "clients.optimizer"
MUON = "muon"
EXAMPLE = "torch.optim.SGD(named_parameters, lr)"


def sgd(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def adam(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return Adam(parameters, lr=lr, weight_decay=weight_decay)


def adamw(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return AdamW(parameters, lr=lr, weight_decay=weight_decay)


def find_optimizer(name: Any, options: Options, muon: MuonConfig | None = None, model: nn.Module | None = None) -> Make:
    """Find what makes an optimizer of (parameters, lr, momentum, weight_decay); of (name, parameter) pairs `by_name`.

    Muon looks for embeddings and the output layer in `model`. ValueError names clients.optimizer or one of its options.
    """
    makers = OPTIMIZERS
    if name == MUON:
        check_muon()
        makers = OPTIMIZERS | {MUON: muon_of(muon or MuonConfig(), model or nn.Module())}
    found = find(KEY, name, makers)
    if not is_own(name, makers):
        return bind(KEY, name, found, options, ["parameters", "lr", "momentum", "weight_decay"])
    users = bind(KEY, name, found, options, ["named_parameters", "lr"])

    def make(named: list[tuple[str, nn.Parameter]], lr: float, momentum: float, weight_decay: float) -> Optimizer:
        optimizer: Optimizer = expect(KEY, name, call(KEY, name, users, named, lr), Optimizer, EXAMPLE)
        remember_factors(optimizer, lr)
        return optimizer

    return make


def steps_by_name(name: Any) -> bool:
    """Tell whether an optimizer is given each parameter by its name, and not one flat vector."""
    return name == MUON or is_own(name, OPTIMIZERS)


OPTIMIZERS: dict[str, Make] = {  # of one flat vector
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}
