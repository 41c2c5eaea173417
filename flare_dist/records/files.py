"""Files that are either whole or not there: a crash at any moment leaves the old content or the new."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from flare_dist.disk import explained, sync_path

BASE = "base"  # in the header of a saved model: the digest of the frozen weights that are not in it


@contextmanager
def replacing(path: Path, key: str = "output_dir", nbytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` once the block has ended and its bytes are on the disk.

    Raises DiskError that begins with the configuration's `key` if the disk does not take `nbytes` bytes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explained(key, path, nbytes):
            yield temporary
            sync_path(temporary)
            os.replace(temporary, path)
            sync_path(path.parent)
    finally:
        with suppress(OSError):  # the disk may have gone, and its first error is the one to report
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, key: str = "output_dir") -> None:
    """Write a whole file, or leave the old one; raises DiskError as `replacing` does."""
    content = text.encode()
    with replacing(path, key, len(content)) as temporary:
        temporary.write_bytes(content)


def save_model(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, key: str = "output_dir"
) -> None:
    """Write weights and buffers by name in the format of safetensors, with texts for its header.

    Raises DiskError as `replacing` does.
    """
    # Tensors share one flat vector, and may be expanded or transposed: the format takes each in one piece of its own.
    whole = torch.contiguous_format
    pieces = {name: tensor.detach().cpu().clone(memory_format=whole) for name, tensor in tensors.items()}
    content = _with_sorted_metadata(save(pieces, metadata))
    with replacing(path, key, len(content)) as temporary:
        temporary.write_bytes(content)


def load_model(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors of a saved model, and the digest of the frozen weights that go with them, if any do."""
    with safe_open(path, "pt") as file:
        return load_file(path), (file.metadata() or {}).get(BASE)


def _with_sorted_metadata(content: bytes) -> bytes:
    """Sort the texts in the header of a safetensors file: the library writes them in an order drawn afresh each time.

    The format is the header's length as 8 bytes, the header as JSON, padded with spaces, and the tensors.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if "__metadata__" not in header:
        return content
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def is_storable(dtype: torch.dtype) -> bool:
    """Tell whether the format of saved models has this dtype (it has no complex128)."""
    try:
        save({"none": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, SafetensorError):
        return False
    return True


def save_state(path: Path, state: Any, key: str = "output_dir") -> None:
    """Write plain containers and tensors by torch.save, readable with weights_only=True."""
    with replacing(path, key, _nbytes(state)) as temporary:
        try:
            with temporary.open("wb") as file:  # a file that torch.save opens gives no reason if it fails
                torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _nbytes(state: Any) -> int:
    """Add up the bytes of the tensors in plain containers."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, (dict, list, tuple)):
        return sum(map(_nbytes, state.values() if isinstance(state, dict) else state))
    return 0


def sha256(path: Path) -> bytes:
    """Compute the digest of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        read: Callable[[], bytes] = lambda: file.read(2**20)  # noqa: E731
        for block in iter(read, b""):
            digest.update(block)
    return digest.digest()
