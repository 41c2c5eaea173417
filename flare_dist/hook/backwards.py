"""Where a step begins and ends, for gradients that come from hooks which do not tell."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Variable

from flare_dist.hook.call_order import CallOrder
from flare_dist.hook.state import SparseHookState


class Backwards:
    """Begins a step of `state` with the first group of parameters in each backward, and ends it with the backward."""

    def __init__(self, state: SparseHookState) -> None:
        self.order = CallOrder(state.process_group)
        self._state = state
        self._handed_over: set[int] = set()  # groups of the backward that is going on

    def hand_over(self, number: int) -> None:
        """Begin a step with the first group of a backward, and with one that is used twice in it."""
        if number in self._handed_over:
            self._end()
        if not self._handed_over:
            self.order.look()
            self._state.begin_step()
            self._state.is_whole = False
            Variable._execution_engine.queue_callback(self._end)
        self._handed_over.add(number)

    def _end(self) -> None:
        self._handed_over.clear()
        self._state.is_whole = True
        self._state.side_streams.join()
        self.order.end_step()

    def forward_begins(self, *unused: Any) -> None:
        """Forget a backward that was broken off."""
        if torch.is_grad_enabled() and not torch._C._current_graph_task_id() >= 0:
            self._handed_over.clear()
