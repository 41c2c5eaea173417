"""The block in which torch sees GPUs that are pretended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend_gpu.futures import PretendFuture
from tests.pretend_gpu.log import LOG, Log, RefusedError
from tests.pretend_gpu.operations import run
from tests.pretend_gpu.streams import STREAMS, Event
from tests.pretend_gpu.tensors import Pretend, forget_holders, moved_by, on_gpu, pinned

_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.empty_like, torch.zeros_like)


class _Factories(TorchFunctionMode):
    """torch.tensor and the like with device=cuda, which build below the dispatcher, and page-locked memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            device = kwargs.get("device")
            if args and isinstance(args[0], Pretend):
                return args[0]
            if device is not None and torch.device(device).type == "cuda":
                LOG.wait("host to device copy, pageable")
                return on_gpu(func(*args, **{key: value for key, value in kwargs.items() if key != "device"}))
        if func in _MAKERS and kwargs.get("pin_memory"):
            return pinned(func(*args, **{key: value for key, value in kwargs.items() if key != "pin_memory"}))
        moved = moved_by(func, args, kwargs)
        return func(*args, **kwargs) if moved is NotImplemented else moved


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class PretendEvent:
    """An event of a stream; the simulated device is done at once."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def query(self) -> bool:
        return True

    def wait(self, stream: PretendStream | None = None) -> None:
        STREAMS.wait(self.event, None if stream is None else stream.number)

    def synchronize(self) -> None:
        LOG.wait("event.synchronize")


class PretendStream:
    """A stream, by its number."""

    def __init__(self, device: Any = None, number: int | None = None) -> None:
        self.number = STREAMS.made() if number is None else number

    def record_event(self) -> PretendEvent:
        return PretendEvent(STREAMS.event(self.number))

    def wait_event(self, event: PretendEvent) -> None:
        STREAMS.wait(event.event, self.number)

    def wait_stream(self, other: PretendStream) -> None:
        STREAMS.wait(STREAMS.event(other.number), self.number)

    def synchronize(self) -> None:
        LOG.wait("stream.synchronize")


class _Properties:
    multi_processor_count = 132
    major = 9
    minor = 0
    name = "pretended H100"
    uuid = "GPU-0"
    total_memory = 80 * 2**30


def _replaced(gpus: int, current: int) -> dict[str, Any]:
    """Return what stands for the functions of torch.cuda, where this GPU is the current one."""
    chosen = [current]

    def synchronize(device: Any = None) -> None:
        LOG.wait("torch.cuda.synchronize")

    def set_device(device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index or 0
        if not 0 <= index < gpus:
            raise RefusedError(f"CUDA error: invalid device ordinal ({index} of {gpus})")
        chosen[-1] = index

    @contextmanager
    def on_device(device: Any) -> Iterator[None]:
        chosen.append(chosen[-1])
        set_device(device)
        yield
        chosen.pop()

    def on_stream(stream: PretendStream | None) -> AbstractContextManager[None]:
        return nullcontext() if stream is None else STREAMS.on(stream.number)

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "device_count": lambda: gpus,
        "current_device": lambda: chosen[-1],
        "set_device": set_device,
        "device": on_device,
        "device_of": lambda tensor: nullcontext(),
        "synchronize": synchronize,
        "Stream": PretendStream,
        "stream": on_stream,
        "current_stream": lambda device=None: PretendStream(number=STREAMS.current),
        "mem_get_info": lambda device=None: (60 * 2**30, _Properties.total_memory),
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_device_properties": lambda device=None: _Properties(),
        "get_device_capability": lambda device=None: (_Properties.major, _Properties.minor),
        "get_device_name": lambda device=None: _Properties.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_rng_state": lambda device=None: torch.empty(0, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }


def _patches(gpus: int, current: int) -> Iterator[AbstractContextManager[Any]]:
    for name, value in _replaced(gpus, current).items():
        yield patch.object(torch.cuda, name, value)
    yield patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    for check in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        yield patch.object(torch.optim.Optimizer, check, lambda self: None, create=True)
    enter = torch.autocast.__init__

    def autocast_as_on_a_cpu(self: Any, device_type: str, *arguments: Any, **options: Any) -> None:
        enter(self, "cpu" if device_type == "cuda" else device_type, *arguments, **options)

    yield patch.object(torch.autocast, "__init__", autocast_as_on_a_cpu)
    # A CPU parameter cannot become a Pretend in place: Module.to makes new ones, which real CUDA does not.
    yield patch("torch.__future__.get_overwrite_module_params_on_conversion", lambda: True)
    yield patch.object(torch.futures, "Future", PretendFuture)
    yield _Factories()
    yield _Operations()


@contextmanager
def pretend_gpu(gpus: int = 8, current: int = 0) -> Iterator[Log]:
    """Let torch see so many GPUs in the block; yields what it does.

    device="cuda" is the first of them, whichever is `current`, by which NCCL moves what has no device.
    """
    STREAMS.reset()
    forget_holders()
    with ExitStack() as stack, LOG.fresh() as own:
        for each in _patches(gpus, current):
            stack.enter_context(each)
        stack.callback(AcceleratorState._reset_state, True)  # which would hold the device for all tests to come
        yield own
