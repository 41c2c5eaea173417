"""Server optimizers: what is made of the flat global parameters and the pseudo-gradient, minus the mean delta.

Adaptive federated optimisation is that of Reddi et al. 2021, equation for equation; torch.optim's Adam and Adagrad are
other methods (bias correction, another place of the small constant) and have their own names.
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


class Settings(NamedTuple):
    """The settings of an optimizer; None if it has no such setting, or takes its own default."""

    lr: float
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    tau: float = 1e-3


SecondMoment = Callable[[Tensor, Tensor, float], object]  # updates (v, Delta^2, beta2) in place


def adagrad_moment(v: Tensor, squared: Tensor, beta2: float) -> None:
    """Update v <- v + Delta^2."""
    v.add_(squared)


def adam_moment(v: Tensor, squared: Tensor, beta2: float) -> None:
    """Update v <- beta2 * v + (1 - beta2) * Delta^2."""
    v.mul_(beta2).add_(squared, alpha=1 - beta2)


def yogi_moment(v: Tensor, squared: Tensor, beta2: float) -> None:
    """Update v <- v - (1 - beta2) * Delta^2 * sign(v - Delta^2)."""
    v.addcmul_(squared, torch.sign(v - squared), value=beta2 - 1)


class FederatedAdaptive(Optimizer):
    """FedAdagrad, FedAdam and FedYogi (Reddi et al. 2021, algorithm 2) on one flat parameter.

    m <- beta1 * m + (1 - beta1) * Delta, v by `second_moment`, w <- w + lr * m / (sqrt(v) + tau); m_0 = 0, v_0 = tau^2,
    no bias correction. Delta is minus the gradient.
    """

    def __init__(
        self, parameters: Tensor, lr: float, betas: tuple[float, float], tau: float, second_moment: SecondMoment
    ) -> None:
        super().__init__([parameters], {"lr": lr, "betas": betas, "tau": tau})
        self.second_moment = second_moment
        self.initial = {"v": tau**2}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step on the gradient of the parameter."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            tau = group["tau"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["m"] = torch.zeros_like(parameter)
                    state["v"] = torch.full_like(parameter, tau**2)
                state["m"].mul_(beta1).sub_(parameter.grad, alpha=1 - beta1)
                self.second_moment(state["v"], parameter.grad.square(), beta2)
                parameter.addcdiv_(state["m"], state["v"].sqrt().add_(tau), value=group["lr"])


Make = Callable[[Tensor, Settings], Optimizer]


class Kind(NamedTuple):
    """A kind of optimizer: how it is made, and its default momentum and betas; None if it has none."""

    make: Make
    momentum: float | None = None
    betas: tuple[float, float] | None = None

    def with_defaults(self, settings: Settings) -> Settings:
        momentum = self.momentum if settings.momentum is None else settings.momentum
        return settings._replace(momentum=momentum, betas=settings.betas or self.betas)


def sgd(parameters: Tensor, settings: Settings) -> Optimizer:
    """Make SGD: FedAvg at lr 1; with momentum FedAvgM (Hsu et al. 2019): v <- beta * v + Delta, w <- w + lr * v."""
    return SGD([parameters], lr=settings.lr, momentum=settings.momentum or 0.0)


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


def find_optimizer(name: str) -> Kind:
    """Find an optimizer, one of ours or torch:NAME; raises ValueError that lists them if there is none."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    prefix, _, own = name.partition(":")
    found = vars(torch.optim).get(own)
    if prefix != "torch" or not isinstance(found, type) or not issubclass(found, Optimizer):
        raise unknown_choice("server.optimizer", name, [*OPTIMIZERS, "torch:NAME of torch.optim"])
    betas = inspect.signature(found).parameters.get("betas")
    kind = Kind(torch_s(found), betas=betas.default if betas else None)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    try:
        kind.make(parameter, kind.with_defaults(Settings(0.1))).step()
    except (RuntimeError, TypeError, ValueError) as error:  # some need sparse gradients, a closure or matrices
        raise ValueError(f"server.optimizer: {name} does not step one flat vector: {error}") from error
    return kind


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
