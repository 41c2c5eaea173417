"""Where a step begins and ends, for gradients that come from hooks which do not tell."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd import Variable

from flare_dist.comm.collectives import rank_and_size
from flare_dist.comm.traffic import all_gather_wire
from flare_dist.hook.call_order import BEGINNING, CallOrder
from flare_dist.hook.state import SparseHookState

ABSENT = "attach: another replica did not come to the exchange of its gradients"


def elsewhere(places: Sequence[int]) -> str:
    """Write the error of replicas that hand over different modules; see call_order.py."""
    if BEGINNING in places:
        return (
            "attach: all replicas must call it together, got one that calls it while others train; build the model and "
            "attach on all of them before the first step"
        )
    return (
        "attach: the replicas must reduce the gradients of the same modules in the same order, got another module on "
        "one of them, as if its forward had left one out; run the same modules on all replicas, times 0 where one has "
        "no use for it"
    )


class Backwards:
    """Begins a step of `state` with the first group of parameters in each backward, and ends it with the backward."""

    def __init__(self, state: SparseHookState) -> None:
        self._order = CallOrder(state.process_group, ABSENT, elsewhere)
        self._state = state
        self._handed_over: set[int] = set()  # groups of the backward that is going on
        self._held: list[Tensor] = []

    def hold(self, reduced: Tensor) -> None:
        """Hold until the backward ends what FSDP2 lets go of as soon as it has made a gradient of it.

        It was allocated by the stream that reduces over shards, which would be given its memory again while others
        still read it.
        """
        if not reduced.is_cuda:
            return
        if not self._held:
            Variable._execution_engine.queue_callback(self._held.clear)
        self._held.append(reduced)

    def hand_over(self, number: int, label: Tensor) -> None:
        """Begin a step with the first group of a backward, and with one that is used twice in it.

        `label` is its place (call_order.py) on the device, which must be that of the other replicas.
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
