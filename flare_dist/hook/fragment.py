"""A part of a replica's weights that travels as one: its global values, what is on the way, and the outer optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.comm.collectives import ProcessGroup
from flare_dist.hook.call_order import arrived
from flare_dist.hook.ddp import exchange_gradients
from flare_dist.hook.pull import aim_at, pull
from flare_dist.hook.scale import not_finite
from flare_dist.hook.stand_ins import StandIns
from flare_dist.hook.state import SparseHookState
from flare_dist.layout import ParameterLayout


class Fragment:
    """Some of the weights; what they have moved since the last outer step goes through the exchange of the hook."""

    def __init__(
        self,
        named: Mapping[str, Tensor],
        group: ProcessGroup | None,
        home: torch.device | None,
        make_optimizer: Callable[[Sequence[Tensor]], Optimizer],
        seed: int,
        compression: Mapping[str, Any],
    ) -> None:
        """Begin where `named`, the local weights, are now; `home` is where the global ones lie, by default there."""
        self.local_weights = dict(named)
        self.layout = ParameterLayout.of(named.items())
        self.device = next(iter(named.values())).device
        flat = torch.cat([tensor.flatten().float() for tensor in named.values()])
        self.global_vector = flat.to(home or self.device, copy=True)  # the global weights, as of the last outer step
        self.global_weights = {name: nn.Parameter(view) for name, view in self.layout.views(self.global_vector)}
        self.optimizer = make_optimizer(list(self.global_weights.values()))
        stand_ins = StandIns({name: tensor.shape for name, tensor in named.items()}, self.device)
        self._parameters = list(stand_ins.by_name.values())
        self.exchange = SparseHookState(stand_ins, process_group=group, seed=seed, quiet=True, **compression)
        self._on_the_way: torch.futures.Future[Tensor] | None = None
        self._arrived: Tensor | None = None
        self._aims: dict[str, Tensor] = {}  # of FLARE's pull, by name

    def send(self) -> None:
        """Begin to exchange the pseudo-gradient, the global weights minus the local ones.

        Global weights count as they were handed out: what a precision of 16 bits had rounded off is no local work.
        """
        local = torch.cat([tensor.flatten().float() for tensor in self.local_weights.values()])
        handed = [start.flatten() for start in self._handed_out().values()]
        moved = torch.sub(torch.cat(handed), local, out=local)
        self.exchange.begin_step()
        self._on_the_way = exchange_gradients(self.exchange, self._parameters, moved)

    def _handed_out(self) -> dict[str, Tensor]:
        """Return the global weights as local ones began with them, in float32, by name."""
        views = dict(self.layout.views(self.global_vector.to(self.device)))
        return {name: views[name].to(tensor.dtype).float() for name, tensor in self.local_weights.items()}

    def aim(self, percentile: float) -> None:
        """Fix where the pull leads until the next outer step: to what is not sent yet."""
        memory = self.exchange.memory.after_step(self.exchange.failures.of_step(True))
        self._aims = aim_at({name: own["residual"].to(self.device) for name, own in memory.items()}, percentile)

    def pull(self, distance: float) -> None:
        """Move the local weights by so much towards where the pull leads; not while something is on the way."""
        if self.is_on_the_way or not self._aims:
            return
        start = self._handed_out()
        for name, aim in self._aims.items():  # none of a replica whose file was lost
            pull(self.local_weights[name], start[name], aim, distance)

    @property
    def is_on_the_way(self) -> bool:
        """Tell if something was sent that has not been applied."""
        return self._on_the_way is not None or self._arrived is not None

    def wait(self) -> Tensor | None:
        """Wait for the mean pseudo-gradient that was sent, float32 [total]; None if none is on the way.

        Raises FloatingPointError, on all replicas alike, if the weights of one of them were not finite, and
        RuntimeError if a replica did not send, which mostly has taken fewer steps.
        """
        if self._on_the_way is not None:
            self._arrived = arrived(self._on_the_way, "outer: another replica has not sent what it has moved")
            self._on_the_way = None
            failed = self.exchange.failures.of_step(True)  # None if everything is sent, where nothing was looked at
            if not_finite(self._arrived) if failed is None else failed:
                raise FloatingPointError(
                    "outer: the weights of a replica are not finite; lower the inner learning rate, or resume from "
                    "before"
                )
        return self._arrived

    def apply(self, mix: float) -> None:
        """Take the outer step with what has arrived, and set the local weights; `mix` of them stay local."""
        mean = self.wait()
        assert mean is not None, "nothing was sent"
        self._arrived = None
        gradients = self.layout.views(mean.to(self.global_vector.device))
        for (_, gradient), weight in zip(gradients, self.global_weights.values()):
            weight.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        for weight, local in zip(self.global_weights.values(), self.local_weights.values()):
            moved = weight.detach().to(local.device)
            local.copy_(moved.lerp(local.float(), mix) if mix else moved)

    def state_dict(self) -> dict[str, Any]:
        """Copy what is the same on all replicas: global weights, the outer optimizer's state, and what has arrived."""
        mean = self.wait()
        own = self.optimizer.state
        return {
            "start": {name: weight.detach().clone() for name, weight in self.global_weights.items()},
            "optimizer": {name: _copied(own.get(weight, {})) for name, weight in self.global_weights.items()},
            "arrived": {} if mean is None else {name: view.clone() for name, view in self.layout.views(mean)},
        }

    def load_state_dict(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what `state_dict` gave, of these weights and perhaps of others."""
        for name, weight in self.global_weights.items():
            weight.data.copy_(saved["start"][name])
            self.optimizer.state[weight] = {
                key: value.to(weight.device) if isinstance(value, Tensor) and key != "step" else value
                for key, value in _copied(saved["optimizer"][name]).items()
            }
        self._on_the_way = None
        self._arrived = None
        if all(name in saved["arrived"] for name in self.global_weights):
            mean = torch.cat([saved["arrived"][name].flatten() for name in self.global_weights])
            self._arrived = mean.to(self.device)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def pull_all(fragments: Sequence[Fragment], strength: float, lr: float | None) -> None:
    """Pull all fragments by `strength` times the rate of the inner optimizer's step; ValueError if it is not given."""
    if lr is None:
        raise ValueError(
            "outer.step: the pull is outer.pull times the rate of the inner optimizer, got no lr; write "
            'outer.step(lr=optimizer.param_groups[0]["lr"])'
        )
    for fragment in fragments:
        fragment.pull(strength * lr)


def divided(weights: Mapping[str, Tensor], number: int) -> list[dict[str, Tensor]]:
    """Divide weights, in their order, into parts of about equally many entries, the same on all replicas."""
    total = sum(tensor.numel() for tensor in weights.values())
    parts: list[dict[str, Tensor]] = [{}]
    passed = 0
    for place, (name, tensor) in enumerate(weights.items()):
        left = len(weights) - place
        is_full = passed >= total * len(parts) / number
        if parts[-1] and len(parts) < number and (is_full or left == number - len(parts)):
            parts.append({})
        parts[-1][name] = tensor
        passed += tensor.numel()
    return parts
