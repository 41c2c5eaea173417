"""Futures of a device: complete as soon as their work is enqueued, their values behind events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._pytree import tree_leaves

from tests.pretend_gpu.streams import STREAMS, Event
from tests.pretend_gpu.tensors import Pretend


class _Number:
    """A stream, as `record_stream` takes it."""

    def __init__(self, number: int) -> None:
        self.number = number


class PretendFuture:
    """What torch.futures.Future(devices=[gpu]) is, and what the work of NCCL gives."""

    def __init__(self, *, devices: Any = None) -> None:
        self._value: Any = None
        self._event: Event | None = None
        self._error: Exception | None = None
        self._callbacks: list[Callable[[], None]] = []

    def __class_getitem__(cls, item: Any) -> type[PretendFuture]:
        return cls

    @classmethod
    def of(cls, value: Any, event: Event) -> PretendFuture:
        future = cls()
        future._value = value
        future._event = event
        return future

    def set_result(self, value: Any) -> None:
        assert self._event is None, "it has a result already"
        self._value = value
        self._event = STREAMS.event()
        for callback in self._callbacks:
            callback()

    def done(self) -> bool:
        return self._event is not None

    def wait(self) -> Any:
        """Let the current stream wait; the host would wait for ever for what nobody has set."""
        assert self._event is not None, "nobody has set this future, so that the host waits for ever"
        if self._error is not None:
            raise self._error
        STREAMS.wait(self._event)
        for tensor in tree_leaves(self._value):
            if isinstance(tensor, Pretend):
                tensor.record_stream(_Number(STREAMS.current))
        return self._value

    def value(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def then(self, callback: Callable[[Any], Any]) -> PretendFuture:
        """Call on the next stream of the pool, which waits for the value."""
        child = PretendFuture()

        def call() -> None:
            assert self._event is not None
            with STREAMS.on(STREAMS.next_of_pool()):
                STREAMS.wait(self._event)
                try:
                    child.set_result(callback(self))
                except Exception as error:
                    child._error = error
                    child.set_result(None)

        self._call(call)
        return child

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.then(callback)

    def _call(self, call: Callable[[], None]) -> None:
        if self.done():
            call()
        else:
            self._callbacks.append(call)
