"""A watch for replicas that are elsewhere than the rest: in another module or step, or only beginning.

Each exchange is preceded by one of eight bytes, which tells where a replica is. Payloads of other lengths would end a
process of gloo, and hang one of NCCL; those of one length would be added up. Places are negative numbers, since other
collectives of ours begin with the length of an object in as many bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from flare_dist.comm.collectives import ProcessGroup, Work, start_gather

BEGINNING = -1  # in attach() or outer()
Problem = Callable[[Sequence[int]], str]  # writes the error of places by replica; of none, where nobody has read them


def place_of(number: int) -> int:
    """Return the place of a replica that hands over the module, or is in the step, of this number from 0."""
    return -2 - number


def number_of(place: int) -> int:
    """Return the number that `place_of` was given."""
    return -2 - place


def absent(who: str, error: RuntimeError) -> RuntimeError:
    """Return the error of an exchange to which a replica has not come, which mostly has taken fewer steps."""
    problem = str(error).split("\n")[0]
    return RuntimeError(
        f"{who}; every replica must take equally many steps, so give each as many batches, and let all of them begin "
        f"together ({problem})"
    )


def arrived(mean: torch.futures.Future[Tensor], who: str) -> Tensor:
    """Wait for a mean over replicas; raises RuntimeError that begins with `who` if one of them did not send."""
    try:
        return mean.wait()
    except RuntimeError as error:
        raise absent(who, error) from error


def begin_together(group: ProcessGroup | None, device: torch.device, who: str, problem: Problem) -> None:
    """Wait until all replicas begin; raises RuntimeError on all of them if one is elsewhere."""
    own = torch.full((1,), BEGINNING, device=device)
    try:
        gathered, work = start_gather(own, group)
        work.wait()
    except RuntimeError as error:
        raise absent(f"{who}: another replica does not begin", error) from error
    places = gathered.tolist()
    if any(place != BEGINNING for place in places):
        raise RuntimeError(problem(places))


class CallOrder:
    """Compares where replicas are; on a GPU nobody waits for it, and `look` tells of it a step late."""

    def __init__(self, group: ProcessGroup | None, who: str, problem: Problem) -> None:
        self._group = group
        self._who = who
        self._problem = problem
        self._differs: Tensor | None = None
        self._copied: Tensor | None = None  # held until the copy is over; another stream may have allocated it
        self._arrived: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def compare(self, place: Tensor) -> None:
        """Raise RuntimeError, on a CPU, if a replica is elsewhere than at `place`, int64 [1]."""
        self.start(place)()

    def start(self, place: Tensor) -> Callable[[], None]:
        """Begin to compare; what it returns raises RuntimeError as `compare` does."""
        try:
            gathered, work = start_gather(place, self._group)
        except RuntimeError as error:
            raise absent(self._who, error) from error
        return partial(self._settle, place, gathered, work)

    def _settle(self, place: Tensor, gathered: Tensor, work: Work) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise absent(self._who, error) from error
        differs = gathered.to(place.device).ne(place).any()
        if not place.is_cuda:
            if differs:
                raise RuntimeError(self._problem(gathered.tolist()))
            return
        self._differs = differs if self._differs is None else self._differs | differs

    def end_step(self) -> None:
        """Let what was found on a GPU travel to the CPU."""
        if self._differs is None or self._arrived is not None:
            return
        self._arrived = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._arrived.copy_(self._differs, non_blocking=True)
        self._event = torch.cuda.current_stream(self._differs.device).record_event()
        self._copied = self._differs
        self._differs = None

    def look(self) -> None:
        """Raise RuntimeError if what has arrived by now tells of other replicas' places."""
        if self._arrived is None or (self._event is not None and not self._event.query()):
            return
        differs = bool(self._arrived)
        self._copied = None
        self._arrived = None
        self._event = None
        if differs:
            raise RuntimeError(self._problem(()))
