"""Server optimizers: what is made of the flat global parameters and the pseudo-gradient, minus the mean delta.

The user's own takes (named_parameters, lr, **options); its parameters are views of the flat ones.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from flare_dist.errors import unknown_choice
from flare_dist.named import FORM, Options, bind, call, expect, find, is_own
from flare_dist.schedules import remember_factors
from flare_dist.server.adaptive import FederatedAdaptive, SecondMoment, adagrad_moment, adam_moment, yogi_moment

KEY = "server.optimizer"
EXAMPLE = "torch.optim.Adam(named_parameters, lr)"


class Settings(NamedTuple):
    """The settings of an optimizer; None if it has no such setting, or takes its own default."""

    lr: float
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    tau: float = 1e-3
    nesterov: bool = False


Make = Callable[[Any, Settings], Optimizer]  # of the flat parameters, or of (name, parameter) pairs


class Kind(NamedTuple):
    """A kind of optimizer: how it is made, and its default momentum and betas; None if it has none."""

    make: Make
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    by_name: bool = False  # it is given each parameter by its name, and not one flat vector

    def with_defaults(self, settings: Settings) -> Settings:
        momentum = self.momentum if settings.momentum is None else settings.momentum
        return settings._replace(momentum=momentum, betas=settings.betas or self.betas)


def sgd(parameters: Tensor, settings: Settings) -> Optimizer:
    """Make SGD: FedAvg at lr 1; with momentum FedAvgM (Hsu et al. 2019): v <- beta * v + Delta, w <- w + lr * v.

    With Nesterov's w <- w + lr * (Delta + beta * v) it is the outer optimizer of DiLoCo.
    """
    return SGD([parameters], lr=settings.lr, momentum=settings.momentum or 0.0, nesterov=settings.nesterov)


def rmsprop(parameters: Tensor, settings: Settings) -> Optimizer:
    return RMSprop([parameters], lr=settings.lr, momentum=settings.momentum or 0.0)


def adaptive(second_moment: SecondMoment) -> Make:
    """Make FedAdagrad, FedAdam or FedYogi, which differ in the second moment."""

    def make(parameters: Tensor, settings: Settings) -> Optimizer:
        if settings.betas is None:
            raise ValueError("server.betas: this optimizer needs them, got null; give two numbers in [0, 1)")
        return FederatedAdaptive(parameters, settings.lr, settings.betas, settings.tau, second_moment)

    return make


def torch_s(optimizer: Callable[..., Optimizer]) -> Make:
    """Make one of torch.optim with its own settings, but for the learning rate and betas."""

    def make(parameters: Tensor, settings: Settings) -> Optimizer:
        betas: dict[str, Any] = {"betas": settings.betas} if settings.betas else {}
        return optimizer([parameters], lr=settings.lr, **betas)

    return make


def find_optimizer(name: Any, options: Options | None = None) -> Kind:
    """Find an optimizer, one of ours, torch:NAME or the user's; raises ValueError that names what is wrong."""
    own = options or {}
    if isinstance(name, str) and name.startswith("torch:"):
        return _torch_kind(name, own)
    found = find(KEY, name, OPTIMIZERS, ["torch:NAME"])
    if is_own(name, OPTIMIZERS):
        return Kind(_users(name, bind(KEY, name, found, own, ["named_parameters", "lr"])), by_name=True)
    bind(KEY, name, lambda parameters, settings: None, own, ["parameters", "settings"])
    kind: Kind = found
    return kind


def _torch_kind(name: str, options: Options) -> Kind:
    """Find one of torch.optim, and try that it steps one flat vector."""
    found = vars(torch.optim).get(name.partition(":")[2])
    if not isinstance(found, type) or not issubclass(found, Optimizer):
        raise unknown_choice(KEY, name, [*OPTIMIZERS, "torch:NAME of torch.optim", FORM])
    betas = inspect.signature(found).parameters.get("betas")
    bound = bind(KEY, name, found, options, ["params", "lr"], reserved=["betas"])
    kind = Kind(torch_s(bound), betas=betas.default if betas else None)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    try:
        kind.make(parameter, kind.with_defaults(Settings(0.1))).step()
    except (RuntimeError, TypeError, ValueError) as error:  # some need sparse gradients, a closure or matrices
        raise ValueError(f"{KEY}: {name} does not step one flat vector: {error}") from error
    return kind


def _users(name: Any, users: Callable[..., Any]) -> Make:
    """Make what the user's (named_parameters, lr) returns, and check that it is an optimizer."""

    def make(named: Any, settings: Settings) -> Optimizer:
        optimizer: Optimizer = expect(KEY, name, call(KEY, name, users, named, settings.lr), Optimizer, EXAMPLE)
        remember_factors(optimizer, settings.lr)
        return optimizer

    return make


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Copy the settings of each group of parameters, as they are before the first step."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return copy.deepcopy(groups)


def optimizer_state(optimizer: Optimizer, name: str) -> dict[str, Any]:
    """Return an optimizer's state for a checkpoint, and whose it is; not its settings."""
    return {"name": name, "state": optimizer.state_dict()["state"]}


def load_optimizer_state(optimizer: Optimizer, name: str, saved: dict[str, Any], key: str) -> None:
    """Copy a state that `optimizer_state` gave; the settings stay those that the optimizer was made with.

    Raises ValueError naming the dotted `key` if the state is another optimizer's.
    """
    if saved["state"] and saved["name"] != name:
        raise ValueError(f"{key}: the checkpoint holds the state of {saved['name']}, not of {name}")
    if not saved["state"]:
        return
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(copy.deepcopy({"state": saved["state"], "param_groups": settings}))
    for group in optimizer.param_groups:
        if group.get("momentum"):  # rmsprop does not make the buffer if there was no momentum before
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


OPTIMIZERS: dict[str, Kind] = {
    "sgd": Kind(sgd, momentum=0.0),
    "fedavgm": Kind(sgd, momentum=0.9),
    "fedadagrad": Kind(adaptive(adagrad_moment), betas=(0.0, 0.99)),
    "fedadam": Kind(adaptive(adam_moment), betas=(0.9, 0.99)),
    "fedyogi": Kind(adaptive(yogi_moment), betas=(0.9, 0.99)),
    "adam": Kind(torch_s(Adam), betas=(0.9, 0.999)),
    "adamw": Kind(torch_s(AdamW), betas=(0.9, 0.999)),
    "adagrad": Kind(torch_s(Adagrad)),
    "rmsprop": Kind(rmsprop, momentum=0.0),
}
