"""What a replica remembers between outer steps (outer.py), and when it exchanges and applies it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flare_dist.comm.collectives import rank_and_size
from flare_dist.hook.checks import check_saved
from flare_dist.hook.footprint import report_outer_memory
from flare_dist.hook.fragment import Fragment, divided, pull_all
from flare_dist.hook.meter import HookTraffic
from flare_dist.hook.outer_settings import OuterSettings, check_continued, described
from flare_dist.hook.replica_weights import ReplicaWeights
from flare_dist.hook.replicas import Replicas, held_by_any
from flare_dist.hook.save_watch import SaveWatch
from flare_dist.hook.shards import Shard
from flare_dist.hook.turns import Turns


class OuterSteps:
    """The place of a replica between two outer steps, and the memory of its exchange."""

    def __init__(
        self,
        weights: ReplicaWeights,
        replicas: Replicas,
        settings: OuterSettings,
        compression: Mapping[str, Any],
        seed: int = 0,
        offload: bool = False,
    ) -> None:
        self.settings = settings
        self.process_group = replicas.group
        self.suffix = replicas.suffix
        self.shard: Shard | None = None
        self.weights = weights
        self.parameters = tuple(weights.tensors.values())
        self.shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
        self.finished_steps = 0  # of the inner optimizer
        self._ended_at = -1  # the step of the last finish()
        self.saves = SaveWatch()
        home = torch.device("cpu") if offload else None
        parts = divided(weights.tensors, settings.fragments)
        self.fragments = [
            Fragment(part, self.process_group, home, settings.make_optimizer, seed, compression) for part in parts
        ]
        self._turns = Turns(self.fragments, self.process_group)
        exchange = self.fragments[0].exchange
        self.fed_back = exchange.config.feedback.state_names
        self.state_names = (*exchange.state_names, "local")
        self.rule_name = f"outer {exchange.rule_name}"
        for fragment in self.fragments:
            fragment.exchange.saves = self.saves
        if replicas.is_first_part and rank_and_size(self.process_group)[0] == 0:
            numel = sum(tensor.numel() for tensor in self.parameters)
            report_outer_memory(numel, self.parameters[0].device.type, exchange.config, bool(settings.pull))

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Count a step of the inner optimizer, and exchange and apply what is due. Call it behind each of them.

        `lr`, the rate of that step, is needed by the setting `pull` alone. Raises FloatingPointError on all replicas if
        the weights of one are not finite, and RuntimeError if another replica has not come or is in another step.
        """
        if self.settings.pull:
            pull_all(self.fragments, self.settings.pull, lr)
        self.finished_steps += 1
        now = self.settings.fragment_sent_at(self.finished_steps)
        if now is not None:
            self.weights.check()
            self._turns.send(now, self.finished_steps)
        self.saves.look()
        self._turns.look()
        sent = self.finished_steps - self.settings.delay
        due = self.settings.fragment_sent_at(sent) if sent > 0 else None
        if due is not None and self.fragments[due].is_on_the_way:  # finish() may have applied it
            self._apply(due, self.settings.mix)

    @torch.no_grad()
    def finish(self) -> None:
        """Apply what is on the way, then exchange all that replicas have moved since: they end with the same weights.

        Call it on every replica when training is over, or to go on from there. The exchange is one more outer step of
        each fragment, but of those that are the same everywhere since this step.
        """
        self.weights.check()
        self._turns.end(self.finished_steps)
        for number, fragment in enumerate(self.fragments):
            if fragment.is_on_the_way:
                self._apply(number, self.settings.mix)
        for number in range(len(self.fragments)):
            if not self._is_shared(number):
                self._turns.send(number, self.finished_steps)
                self._apply(number, 0.0)
        self._ended_at = self.finished_steps

    def _is_shared(self, number: int) -> bool:
        """Tell if a fragment has been set to its global weights in this very step, on all replicas."""
        at_once = self.settings.delay == 0 and self.settings.mix == 0
        just_set = at_once and self.settings.fragment_sent_at(self.finished_steps) == number
        return (just_set and self.finished_steps > 0) or self._ended_at == self.finished_steps

    def _apply(self, number: int, mix: float) -> None:
        """Take the outer step of a fragment."""
        self._turns.wait(number)
        fragment = self.fragments[number]
        fragment.apply(mix)
        self.weights.reshard()
        self._aim(fragment)

    def _aim(self, fragment: Fragment) -> None:
        """Let FLARE's pull, if there is one, follow what error feedback holds of a fragment now."""
        if self.settings.pull:
            fragment.aim(self.settings.pull_percentile)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model have the global weights, those of each fragment's last outer step, as long as the block runs.

        To evaluate or to export in the middle of a window; buffers stay the replica's own.
        """
        own = self.show_global()
        try:
            yield
        finally:
            self.weights.set(own)

    def show_global(self) -> dict[str, Tensor]:
        """Give the model the global weights, and return copies of this replica's own, to be set again."""
        own = {name: tensor.clone() for name, tensor in self.weights.tensors.items()}
        self.weights.set({name: weight for each in self.fragments for name, weight in each.global_weights.items()})
        return own

    @property
    def traffic(self) -> HookTraffic:
        """Add up what all fragments have sent: see `SparseHookState`."""
        total = HookTraffic()
        for fragment in self.fragments:
            total += fragment.exchange.traffic
        return total

    @property
    def wire_bytes(self) -> int:
        """Return the bytes that the collectives moved over all replicas, padding included."""
        return self.traffic.wire_bytes

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Copy this replica's memory and local weights, and what is the same on all replicas; call it between steps.

        It waits for what is on the way. The inner optimizer's state is the script's own to save, on every replica.
        """
        memory: dict[str, dict[str, Tensor]] = {}
        shared: dict[str, Any] = {"start": {}, "optimizer": {}, "arrived": {}}
        for fragment in self.fragments:
            for kind, own in fragment.state_dict().items():  # waits, so that the draft of what was sent counts
                shared[kind] |= own
            saved = fragment.exchange.state_dict()["memory"]
            for name, local in fragment.local_weights.items():
                kinds = saved.get(name) or {kind: torch.zeros(local.shape) for kind in fragment.exchange.state_names}
                memory[name] = {**kinds, "local": local.to(torch.promote_types(local.dtype, torch.float32), copy=True)}
        whose = {"rule": self.rule_name, "shapes": dict(self.shapes)}
        sent = [fragment.exchange.step for fragment in self.fragments]
        shared |= {"sent": sent, "ended_at": self._ended_at, "settings": described(self.settings)}
        return {"step": self.finished_steps, "memory": memory, "shared": shared} | whose

    def __reduce__(self) -> Any:
        raise TypeError("outer: is tied to its model and process group, got a copy or pickle; use save_hook_state")

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, the local weights among it; all replicas call it together."""
        check_saved(state, self.rule_name, self.state_names, self.shapes)
        shared = held_by_any(state.get("shared"), self.process_group, self.parameters[0].device)
        check_continued(self.settings, shared or {}, self.shapes)
        self.finished_steps = state["step"]
        if shared is None:  # nothing was saved: the weights are where the script has loaded them
            return
        self._ended_at = shared["ended_at"]
        for fragment, sent in zip(self.fragments, shared["sent"]):
            fragment.load_state_dict(shared)
            own = {name: state["memory"].get(name, {}) for name in fragment.local_weights}
            kept = {name: {kind: vectors[kind] for kind in vectors if kind != "local"} for name, vectors in own.items()}
            memory = {name: vectors for name, vectors in kept.items() if vectors}
            fragment.exchange.load_state_dict({"step": sent, "memory": memory})
            self._aim(fragment)
            for name, local in fragment.local_weights.items():
                local.copy_(own[name]["local"] if own[name] else fragment.global_weights[name])
        self.weights.reshard()
