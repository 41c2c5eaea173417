"""A tracker in a thread of its own: no round waits for a network, and a failure costs the run one warning."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager
from queue import SimpleQueue

from flare_dist.errors import reason
from flare_dist.records.trackers import PATIENCE_SECONDS, Point, Send

log = logging.getLogger(__name__)


class _BrokenOffError(Exception):
    """Tell a tracker that the run has not come to its end."""


_END = None
_BROKEN_OFF = _BrokenOffError()


class Background:
    """Hand points to a tracker, which is opened, fed and closed in another thread."""

    def __init__(self, name: str, tracker: AbstractContextManager[Send]) -> None:
        self._name = name
        self._tracker = tracker
        self._queue: SimpleQueue[Point | _BrokenOffError | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._feed, name=f"tracking by {name}", daemon=True)
        self._thread.start()

    def send(self, point: Point) -> None:
        """Hand over the values of a round, without waiting; a tracker that has failed does not take them."""
        self._queue.put(point)

    def close(self, finished: bool) -> None:
        """Wait until the tracker has taken everything, but not for ever; `finished` tells if the run has ended well."""
        self._queue.put(_END if finished else _BROKEN_OFF)
        self._thread.join(2 * PATIENCE_SECONDS)
        if self._thread.is_alive():
            log.warning("tracking: %s has not taken all values in time; the run ends without them", self._name)

    def _feed(self) -> None:
        try:
            with self._tracker as send:
                while (point := self._queue.get()) is not _END:
                    if isinstance(point, _BrokenOffError):
                        raise point
                    send(point)
        except _BrokenOffError:
            pass
        except (Exception, SystemExit) as error:  # whatever a library raises if a server is away
            problem = reason(error) if isinstance(error, Exception) else repr(error)
            log.warning("tracking: %s failed: %s; the run goes on without it", self._name, problem.rstrip("."))
