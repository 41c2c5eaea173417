"""The downlink: what clients hold of the global parameters, and what it takes to bring it to them.

Clients train on the *view*, which is evaluated, too. With the lossless kinds it is the global parameters
themselves; with the others it follows them, and what it lacks is sent later, as by error feedback on the uplink: the
server's residual is parameters - view.

A client that takes part again has missed rounds. It is counted the cheapest that brings it from what it holds to the
view: the messages that it missed, the entries that changed since (in float32, behind their positions), or everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flare_dist.compression.compressor import Plan, plan
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.index_codecs import smallest
from flare_dist.compression.payload import WORD
from flare_dist.compression.value_codecs import VALUE_CODECS, Groups
from flare_dist.layout import ParameterLayout
from flare_dist.seeding import generator

FP16 = VALUE_CODECS["fp16"]
NO_GROUPS = Groups(torch.empty(0), 0)


class Downlink:
    """The view of the global `parameters` (float32 [total]) that clients hold."""

    def __init__(self, config: CompressionConfig, layout: ParameterLayout, parameters: Tensor) -> None:
        self.kind = config.downlink
        self.parameters = parameters
        self.is_lossless = config.downlink in ("dense", "changed")  # clients hold the global parameters themselves
        self.view = parameters if self.is_lossless else self._first_view()
        self._dense_nbytes = parameters.numel() * (WORD // 2 if self.kind == "fp16" else WORD)
        self._config = config
        self._plan: Plan | None = None
        if self.kind == "topk":
            self._plan = plan(config.of_downlink, layout, config.downlink_density, parameters.device)
        # What a returning client has missed; dense kinds send everything anyhow.
        self._seen: dict[int, int] = {}  # client -> the last round for which it was sent the view
        self._sent: dict[int, int] = {}  # round -> bytes of the message after it
        self._previous = None
        self._changed_in = None
        if self.kind in ("changed", "topk"):
            self._previous = parameters.clone()
            self._changed_in = torch.zeros(layout.total, dtype=torch.int32, device=parameters.device)

    def _first_view(self) -> Tensor:
        """Return the view of clients that were sent everything."""
        if self.kind == "fp16":
            return FP16.decode(FP16.encode(self.parameters, NO_GROUPS, None), NO_GROUPS)
        return self.parameters.clone()

    def message_nbytes(self) -> int:
        """Return the length of the message of a kind that is not lossless."""
        if self._plan:
            return self._plan.packing.sizes(self._plan.max_kept).nbytes
        return self._dense_nbytes

    def encode(self) -> Tensor:
        """Encode the message, uint8 [message_nbytes], that brings the view towards the parameters; for rank 0."""
        if not self._plan:
            return FP16.encode(self.parameters, NO_GROUPS, None)
        residual = self.parameters - self.view
        unused = generator(0, "unused")
        indices = self._plan.choose(residual, lambda segment: unused)
        return self._plan.packing.pack(indices, residual[indices]).data

    def receive(self, message: Tensor) -> None:
        """Take a message over into the view."""
        if not self._plan:
            self.view.copy_(FP16.decode(message, NO_GROUPS))
            return
        payload = self._plan.packing.unpack_checked(message, self._plan.max_kept)
        self.view.index_add_(0, payload.indices, payload.values)

    def finish_round(self, round_: int) -> None:
        """Note which entries of the view have changed, once it is up to date."""
        if self._previous is None or self._changed_in is None:
            return
        self._changed_in[self.view != self._previous] = round_
        self._previous.copy_(self.view)
        if self._plan:
            self._sent[round_] = self.message_nbytes()

    def nbytes_to(self, cohort: Sequence[int], round_: int) -> int:
        """Count the bytes by which a star brings the view to a cohort; call it once, before the round changes it."""
        if self._changed_in is None:
            return len(cohort) * self._dense_nbytes
        changes = self._changed_in.bincount(minlength=round_).tolist()  # by the round in which they were the last
        nbytes = 0
        for client in cohort:
            since = self._seen.get(client)
            options = [self._dense_nbytes]
            if since is not None:
                count = sum(changes[since:])
                codec = smallest(self._config.codecs.indices, self.view.numel(), count)
                options.append(codec.nbytes(self.view.numel(), count) + WORD * count if count else 0)
                if self._plan:
                    options.append(sum(self._sent[missed] for missed in range(since, round_)))
            nbytes += min(options)
            self._seen[client] = round_
        return nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return references, not copies, for a checkpoint. Nothing for dense kinds but the view if it differs."""
        state: dict[str, Any] = {"kind": self.kind, "seen": self._seen, "sent": self._sent}
        if not self.is_lossless:
            state["view"] = self.view
        if self._changed_in is not None:
            state["changed_in"] = self._changed_in
        return state

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take over what `state_dict` gave, after the parameters; what another kind kept does not count."""
        state = state if state and state["kind"] == self.kind else {}
        if not self.is_lossless:
            self.view.copy_(state.get("view", self._first_view()))
        self._seen = dict(state.get("seen", {}))
        self._sent = dict(state.get("sent", {}))
        if self._previous is not None and self._changed_in is not None:
            self._previous.copy_(self.view)
            if "changed_in" in state:
                self._changed_in.copy_(state["changed_in"])
