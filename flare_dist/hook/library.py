"""PyTorch's own communication hooks, counted and timed as ours is, to compare with."""

from typing import Any

import torch
from torch import Tensor

from flare_dist.comm.collectives import GradBucket, ProcessGroup, default_hooks, powerSGD_hook, rank_and_size
from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.traffic import all_reduce_wire
from flare_dist.hook.meter import HookTraffic, StepClock

# PowerSGD starts its later collectives from callbacks, in an order that with several buckets differs between gloo ranks
# and ends the run; with one bucket there is one order. Under NCCL callbacks run where they are added, in one order on
# all ranks, and one bucket would take away what overlaps with backward (from the source; nobody has tried it here).
_ONE_BUCKET_MB = 100_000


def bucket_cap_mb(hook: str, backend: str) -> int | None:
    """Choose DDP's bucket cap for a hook by its name: one bucket for PowerSGD but over NCCL, otherwise DDP's own."""
    return _ONE_BUCKET_MB if hook == "powersgd" and backend != "nccl" else None


class LibraryHookState:
    """The memory of one of PyTorch's hooks, the bytes that it has sent, and their times.

    A ring all-reduce of B bytes moves 2 (W - 1) B over W ranks. PowerSGD's memory is not in checkpoints.
    """

    def __init__(self, config: GradientsConfig, process_group: ProcessGroup | None, seed: int) -> None:
        self.config = config
        self.process_group = process_group
        self.step = 0
        self.traffic = HookTraffic()
        self.clock = StepClock()
        self.powersgd = None
        if config.hook == "powersgd":
            self.powersgd = powerSGD_hook.PowerSGDState(
                process_group, config.powersgd_rank, config.powersgd_start, random_seed=seed
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps; these hooks have no memory by parameter."""
        return {"step": self.step, "memory": {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after so many steps; ValueError for PowerSGD, which cannot without its memory."""
        if self.powersgd and state["step"]:
            raise ValueError("gradients.hook: powersgd cannot go on from another run: its memory is not in checkpoints")
        self.step = state["step"]

    def begin_step(self) -> None:
        self.step += 1
        self.clock.begin_step()

    def sent_by_powersgd(self) -> int:
        """Count the entries of the matrices so far, and of what stays whole."""
        return int(self.powersgd.compression_stats()[2]) if self.powersgd else 0


def library_hook(state: LibraryHookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Exchange one bucket by the hook that the configuration names; the future's value is its mean gradient."""
    if bucket.index() == 0:
        state.begin_step()
    state.clock.hand_over()
    buffer = bucket.buffer()
    before = state.sent_by_powersgd()
    if state.powersgd:
        future = powerSGD_hook.powerSGD_hook(state.powersgd, bucket)
        entries = state.sent_by_powersgd() - before or buffer.numel()  # at first dense
        sent = entries * buffer.element_size()
        collectives = 3 if entries < buffer.numel() else 1
    else:
        halve = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
        future = halve[state.config.hook](state.process_group, bucket)  # type: ignore[arg-type]  # None is all ranks
        entries = buffer.numel()
        sent = 2 * buffer.numel()
        collectives = 1
    _, size = rank_and_size(state.process_group)
    wire = all_reduce_wire(size, sent)
    state.traffic += HookTraffic(wire, sent, entries, collectives)
    state.clock.send(wire)

    def note(done: torch.futures.Future[Tensor]) -> Tensor:
        state.clock.come_back()
        return done.value()

    return future.then(note)
