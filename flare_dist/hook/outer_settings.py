"""The settings of outer steps, and those that papers give them.

local_sgd    averages of weights: Stich, "Local SGD Converges Fast and Communicates Little",
             https://arxiv.org/abs/1805.09767
diloco       Nesterov momentum outside: Douillard et al., "DiLoCo: Distributed Low-Communication Training of
             Language Models", https://arxiv.org/abs/2311.08105
sparseloco   error feedback in place of that momentum, 64 entries of each 4096 in two bits: Sarfi et al.,
             "Communication Efficient LLM Pre-training with SparseLoCo", https://arxiv.org/abs/2508.15706
muloco       DiLoCo whose inner optimizer is Muon: Therien et al., "MuLoCo: Muon is a practical inner optimizer for
             DiLoCo", https://arxiv.org/abs/2505.23725
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from flare_dist.compression.config import CompressionConfig
from flare_dist.errors import check_choice, check_range, check_whole, reason, unknown_choice
from flare_dist.named import bind, expect, find

NESTEROV = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
SPARSE = {"density": 64 / 4096, "scope": "block", "block": 4096, "value_codec": "2bit", "residual_decay": 0.95}
PRESETS: dict[str, dict[str, Any]] = {
    "local_sgd": {"every": 30, "outer_options": {"lr": 1.0}, "density": 1.0},
    "diloco": {"every": 500, "outer_options": NESTEROV, "density": 1.0},
    "sparseloco": {"every": 30, "outer_options": {"lr": 1.0}, **SPARSE},
    "muloco": {"every": 30, "outer_options": NESTEROV, "density": 1.0},
}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": torch.optim.SGD}


@dataclass(frozen=True)
class OuterSettings:
    """When replicas exchange what they have moved, and what is made of it."""

    every: int = 30
    outer_optimizer: Any = "sgd"
    outer_options: Mapping[str, Any] = field(default_factory=lambda: dict(NESTEROV))
    fragments: int = 1
    delay: int = 0
    mix: float = 0.0
    pull: float = 0.0  # FLARE's tau
    pull_percentile: float = 50.0

    def __post_init__(self) -> None:
        check_whole("outer.every", self.every, 1)
        check_whole("outer.fragments", self.fragments, 1)
        check_whole("outer.delay", self.delay, 0)
        check_range("outer.mix", self.mix, "[0, 1)")
        check_range("outer.pull", self.pull, "[0, 1e38)")
        check_range("outer.pull_percentile", self.pull_percentile, "[0, 100)")
        if self.every % self.fragments:
            raise ValueError(
                f"outer.fragments: one is sent every `every` / fragments steps, got {self.fragments} in "
                f"{self.every}; choose a divisor of {self.every}"
            )
        if self.delay >= self.every:
            raise ValueError(
                f"outer.delay: a fragment must have arrived before it is sent again, got {self.delay} with every "
                f"{self.every}; choose less than {self.every}"
            )
        self.make_optimizer([torch.zeros(1, requires_grad=True)])

    def make_optimizer(self, weights: Any) -> Optimizer:
        """Make the outer optimizer of some weights; raises ValueError that names what is wrong with its options."""
        key = "outer.outer_optimizer"
        found = find(key, self.outer_optimizer, OPTIMIZERS)
        options = dict(self.outer_options)
        make = bind(key, self.outer_optimizer, found, options, ["params"])
        try:
            made = make(weights)
        except ValueError as error:
            raise ValueError(f"outer.outer_options: {reason(error)}, got {options}; choose other values") from error
        optimizer: Optimizer = expect(key, self.outer_optimizer, made, Optimizer, "torch.optim.SGD(weights, lr)")
        return optimizer

    def fragment_sent_at(self, step: int) -> int | None:
        """Return the number of the fragment that is sent behind local step `step`, counted from 1; None if none is."""
        interval = self.every // self.fragments
        return None if step % interval else (step // interval - 1) % self.fragments


def settings_of(preset: str | None, given: Mapping[str, Any]) -> tuple[OuterSettings, dict[str, Any]]:
    """Divide what was given over a preset into settings of outer steps and of compression; dense by default."""
    if preset is not None:
        check_choice("outer.preset", preset, PRESETS)
    values = {"density": 1.0} | (PRESETS[preset] if preset else {}) | dict(given)
    names = [each.name for each in dataclasses.fields(OuterSettings)]
    others = [each.name for each in dataclasses.fields(CompressionConfig)]
    for name in values:
        if name not in names + others:
            raise unknown_choice("outer", name, names + others)
    own = OuterSettings(**{name: value for name, value in values.items() if name in names})
    compression = {name: value for name, value in values.items() if name in others}
    if own.pull and "residual" not in CompressionConfig(**compression).feedback.state_names:
        raise ValueError(
            f"outer.pull: leads to what error feedback holds, got {own.pull} without any; send less, with ec or dgc, "
            "or set 0"
        )
    return own, compression


def described(settings: OuterSettings) -> dict[str, Any]:
    """Return the settings as values that replicas and runs can compare: a function or class is its name."""
    return {name: _plain(value) for name, value in vars(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return (
        value if isinstance(value, int | float | str | None) else getattr(value, "__qualname__", type(value).__name__)
    )


def check_continued(settings: OuterSettings, shared: Mapping[str, Any], trained: Iterable[str]) -> None:
    """Raise ValueError if what replicas have saved in common does not go on under these settings, with these weights.

    The rate of the outer optimizer, `mix`, and `every` and `delay` if nothing is on the way, may be others.
    """
    lacking = [name for name in trained if name not in shared.get("start", [name])]
    if lacking:
        raise ValueError(
            f"outer: the memory was saved while {', '.join(lacking)} was frozen, got it trained; load the weights "
            "alone, and call outer() without the memory"
        )
    saved, here = shared.get("settings", {}), described(settings)
    for name in ("fragments", *(("every", "delay") if shared.get("arrived") else ())):
        if saved.get(name, here[name]) != here[name]:
            on_the_way = "" if name == "fragments" else " and something is on the way"
            raise ValueError(
                f"outer.{name}: the memory was saved with {saved[name]}{on_the_way}, got {here[name]}; load it with "
                f"{saved[name]}"
            )
    kept = [set(own) for own in shared.get("optimizer", {}).values() if own]
    if kept and kept[0] != _state_kinds(settings):
        raise ValueError(
            f"outer.outer_optimizer: the saved one keeps {', '.join(sorted(kept[0]))} of each weight, got one that "
            f"keeps {', '.join(sorted(_state_kinds(settings))) or 'nothing'}; load it with the optimizer that saved it"
        )


def _state_kinds(settings: OuterSettings) -> set[str]:
    """Name what the outer optimizer keeps of each weight, by a step on one that is zero."""
    weight = torch.zeros(1, requires_grad=True)
    optimizer = settings.make_optimizer([weight])
    weight.grad = torch.zeros(1)
    optimizer.step()
    return set(optimizer.state.get(weight, {}))
