"""Notes of where the host waited for the device, and of how many operations launched something."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tests.pretend_gpu.streams import STREAMS

PRODUCT = "/flare_dist/"
HARNESS = "/tests/pretend_gpu/"


class RefusedError(RuntimeError):
    """What CUDA would have refused."""


class Log:
    """The waits of the host, by kind and place, and the launches, by place."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.launches: Counter[str] = Counter()

    def wait(self, kind: str) -> None:
        """Note that the host waits here until the device has done everything."""
        self.waits[kind, where()] += 1
        STREAMS.synchronize()

    def launch(self) -> None:
        self.launches[where()] += 1

    @contextmanager
    def fresh(self) -> Iterator[Log]:
        """Note apart what the block does: its waits and launches are in what is yielded."""
        own = Log()
        before = (self.waits, self.launches)
        self.waits, self.launches = own.waits, own.launches
        try:
            yield own
        finally:
            self.waits, self.launches = before


LOG = Log()


def where() -> str:
    """Name the innermost line of the product in the stack; without one, the innermost outside torch and the harness."""
    outside = "?"
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if PRODUCT in path and HARNESS not in path:
            return f"{path.split(PRODUCT)[-1]}:{frame.f_lineno} {frame.f_code.co_name}"
        if outside == "?" and "/torch/" not in path and HARNESS not in path:
            outside = f"{path.split('site-packages/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return outside
