"""Simulated streams of a GPU: vector clocks, who used which memory, and what each stream's allocator holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

POOL = 32  # streams; c10::cuda::kStreamsPerPool
DEFAULT = 0  # number of a stream; 1 to POOL are the pool's
NCCL = POOL + 1
SIDE = POOL + 2  # the first of those that the product makes

Event = list[int]  # what every stream has done at least


@dataclass
class Block:
    """Memory of one storage, and its last uses as (stream, tick)."""

    stream: int  # that allocated it
    nbytes: int
    write: tuple[int, int] | None = None
    reads: dict[int, int] = field(default_factory=dict)
    recorded: set[int] = field(default_factory=set)  # streams that the allocator waits for before it gives it away


class Streams:
    """The streams of one device."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.current = DEFAULT
        self._last_of_pool = 0
        self._clocks = [[0] * SIDE for _ in range(SIDE)]
        self.blocks: dict[int, Block] = {}  # by address
        self._live: Counter[int] = Counter()
        self.peak: Counter[int] = Counter()  # bytes by stream
        self.hazards: Counter[str] = Counter()

    def made(self) -> int:
        """Make a stream; returns its number."""
        for clock in self._clocks:
            clock.append(0)
        self._clocks.append([0] * (len(self._clocks) + 1))
        return len(self._clocks) - 1

    def next_of_pool(self) -> int:
        self._last_of_pool = self._last_of_pool % POOL + 1
        return self._last_of_pool

    def event(self, stream: int | None = None) -> Event:
        return list(self._clocks[self.current if stream is None else stream])

    def wait(self, event: Event, stream: int | None = None) -> None:
        """Let a stream, by default the current one, do nothing more before `event`."""
        own = self._clocks[self.current if stream is None else stream]
        for number, tick in enumerate(event):
            own[number] = max(own[number], tick)

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        before = self.current
        self.current = stream
        try:
            yield
        finally:
            self.current = before

    def synchronize(self) -> None:
        """Let the host wait for the device: whatever comes is behind everything."""
        everything = [clock[number] for number, clock in enumerate(self._clocks)]
        for clock in self._clocks:
            clock[:] = everything

    def tick(self) -> None:
        """Begin an operation on the current stream."""
        self._clocks[self.current][self.current] += 1

    def touch(self, pointer: int, nbytes: int, writes: bool, name: str) -> None:
        """Let the current stream read or write a storage; the first one to do so has allocated it."""
        if not pointer:
            return
        block = self.blocks.get(pointer)
        if block is None:
            block = self.blocks[pointer] = Block(self.current, nbytes)
            self._live[self.current] += nbytes
            self.peak[self.current] = max(self.peak[self.current], self._live[self.current])
        use = "write" if writes else "read"
        if block.write and not self._is_behind(*block.write):
            self.hazards[f"{use} of what stream {block.write[0]} wrote, on {self.current}: {name}"] += 1
        tick = self._clocks[self.current][self.current]
        if not writes:
            block.reads[self.current] = tick
            return
        for stream, read in block.reads.items():
            if not self._is_behind(stream, read):
                self.hazards[f"write of what stream {stream} reads, on {self.current}: {name}"] += 1
        block.write = (self.current, tick)
        block.reads = {}

    def free(self, pointer: int) -> None:
        """Let go of a storage that nobody holds: its block may be given to whoever allocates next on its stream."""
        block = self.blocks.pop(pointer, None)
        if block is None:
            return
        self._live[block.stream] -= block.nbytes
        own = self._clocks[block.stream]
        uses = [*([block.write] if block.write else []), *block.reads.items()]
        for stream, tick in uses:
            if own[stream] < tick and stream not in {block.stream, *block.recorded}:
                self.hazards[f"freed to stream {block.stream} while stream {stream} may use it"] += 1

    def _is_behind(self, stream: int, tick: int) -> bool:
        return self._clocks[self.current][stream] >= tick


STREAMS = Streams()
