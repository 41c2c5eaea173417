"""The way of tensors to a GPU, and where they are kept if it has no room."""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.units import show_bytes


def moved_unwaited(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a CPU tensor to `device`; to a GPU from page-locked memory, so that nothing waits for what it is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def roomy(device: torch.device, nbytes: int) -> torch.device:
    """Choose `device` if a quarter of its memory stays free for activations beside so many bytes, otherwise the CPU."""
    if device.type == "cuda":
        free, capacity = torch.cuda.mem_get_info(device)
        if free - nbytes < capacity // 4:
            return torch.device("cpu")
    return device


def check_room(nbytes: int, device: torch.device) -> torch.device:
    """Return `device`; ValueError that names data.root if so many bytes of examples are more than it has free."""
    if device.type != "cuda":
        return device
    free, capacity = torch.cuda.mem_get_info(device)
    if nbytes > free:
        room = f"{show_bytes(free)} free of {show_bytes(capacity)} on {device}"
        raise ValueError(
            f"data.root: the examples, which are kept on the device, take {show_bytes(nbytes)}, got {room}; use fewer, "
            "or engine.device=cpu"
        )
    return device
