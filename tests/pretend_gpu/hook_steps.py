"""Steps of the hook among equal ranks: what they launch, where they wait, and what their streams do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flare_dist.hook.ddp import sparse_hook
from flare_dist.hook.state import SparseHookState
from tests.pretend_gpu.cuda import pretend_gpu
from tests.pretend_gpu.ddp import CAP, FIRST, PretendBucket, buckets_of
from tests.pretend_gpu.kernels import triton
from tests.pretend_gpu.log import LOG
from tests.pretend_gpu.nccl import nccl
from tests.pretend_gpu.streams import DEFAULT, STREAMS
from tests.pretend_gpu.tensors import to_gpu

Shapes = Sequence[tuple[int, ...]]


class Parameters(torch.nn.Module):
    """A model of nothing but parameters."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for number, shape in enumerate(shapes):
            self.register_parameter(f"p{number}", torch.nn.Parameter(torch.zeros(shape, dtype=dtype)))


@dataclass(frozen=True)
class Found:
    """What the last step did, and all steps to the streams."""

    buckets: int
    bucket_nbytes: int  # of the gradients of the largest in float32, which the hook's memory is of, too
    waits: Counter[tuple[str, str]]
    launches: int
    places: Counter[str]  # of the launches
    hazards: Counter[str]
    peaks: dict[int, int]  # bytes by stream

    @property
    def held_by_others(self) -> int:
        """Return the bytes that streams other than the default one have held at least."""
        return sum(peak for stream, peak in self.peaks.items() if stream != DEFAULT)


def hook_steps(
    shapes: Shapes,
    world: int = 8,
    steps: int = 2,
    dtype: torch.dtype = torch.float32,
    works: bool = True,
    scaled: bool = False,
    compiled: bool = False,
    cap: float = CAP,
    first: float = FIRST,
    **settings: Any,
) -> Found:
    """Take `steps` of the hook among `world` equal ranks.

    With `scaled` gradients there is a GradScaler; buckets are closed at `cap` bytes, the first at `first`; the state of
    a `compiled` model is made as DDP around it makes it.
    """
    draws = torch.Generator().manual_seed(1)
    with pretend_gpu(), nccl(world), triton(works):
        model = Parameters(shapes, dtype).to("cuda")
        groups = buckets_of(list(model.parameters()), cap, first)
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0) if scaled else None
        wrapped: Any = torch.compile(model) if compiled else model
        state = SparseHookState(wrapped, **({"density": 0.01, "scaler": scaler} | settings))
        for _ in range(steps):
            with LOG.fresh() as own:
                futures = []
                for number, group in enumerate(groups):
                    flat = torch.cat([torch.randn(p.numel(), generator=draws) for p in group]).to(dtype)
                    bucket: Any = PretendBucket(number, group is groups[-1], group, to_gpu(flat))
                    futures.append(sparse_hook(state, bucket))
                for future in futures:
                    future.wait()
        state.begin_step()
        largest = 4 * max(sum(p.numel() for p in group) for group in groups)
        found = Found(
            len(groups), largest, own.waits, own.launches.total(), own.launches, Counter(), dict(STREAMS.peak)
        )
        found.hazards.update(STREAMS.hazards)
    return found
