"""Where a step begins and ends, for gradients that come from hooks which do not tell."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import Variable

from flare_dist.comm.collectives import rank_and_size
from flare_dist.comm.traffic import all_gather_wire
from flare_dist.hook.call_order import CallOrder
from flare_dist.hook.state import SparseHookState


class Backwards:
    """Begins a step of `state` with the first group of parameters in each backward, and ends it with the backward."""

    def __init__(self, state: SparseHookState) -> None:
        self._order = CallOrder(state.process_group)
        self._state = state
        self._handed_over: set[int] = set()  # groups of the backward that is going on

    def hand_over(self, number: int, label: Tensor) -> None:
        """Begin a step with the first group of a backward, and with one that is used twice in it.

        `label` is the number as int32 [1] on the device, which must be that of the other replicas.
        """
        if number in self._handed_over:
            self._end()
        if not self._handed_over:
            self._order.look()
            self._state.begin_step()
            self._state.is_whole = False
            Variable._execution_engine.queue_callback(self._end)
        self._handed_over.add(number)
        self._order.compare(label)
        size = rank_and_size(self._state.process_group)[1]
        self._state.count(all_gather_wire(size, label.nbytes), label.nbytes, 0)

    def _end(self) -> None:
        self._handed_over.clear()
        self._state.is_whole = True
        self._state.side_streams.join()
        self._order.end_step()
