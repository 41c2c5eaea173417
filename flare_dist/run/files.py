"""Files that are either whole or not there: a crash at any moment leaves the old content or the new."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from flare_dist.clients.slots import sync_path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, in place of `path` once the block has ended and its bytes are on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
        sync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_model(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write weights and buffers by name; copies, because they share one flat vector, and in one piece each."""
    whole = torch.contiguous_format
    copies = {name: tensor.detach().cpu().clone(memory_format=whole) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(copies))


def is_storable(dtype: torch.dtype) -> bool:
    """False for dtypes that the format of saved models does not know (complex128 is one)."""
    try:
        save({"none": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, SafetensorError):
        return False
    return True


def save_state(path: Path, state: Any) -> None:
    """torch.save of plain containers and tensors, readable with weights_only=True."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def sha256(path: Path) -> bytes:
    """The digest of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        read: Callable[[], bytes] = lambda: file.read(2**20)  # noqa: E731
        for block in iter(read, b""):
            digest.update(block)
    return digest.digest()
