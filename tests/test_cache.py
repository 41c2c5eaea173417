"""The cache beside the data: one process builds, damage is noticed, and a disk that refuses only costs time."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flare_dist.data import cache, images
from flare_dist.data.cache import cached_array
from tests.helpers.images import equal, read, write_tree


def rewrite(root: Path) -> None:
    Image.new("RGB", (6, 4), (1, 2, 3)).save(root / "train/bee/1.png")


def touch(root: Path) -> None:
    Image.new("RGB", (6, 4), (1, 2, 3)).save(root / "train/bee/1.png")
    os.utime(root / "train/bee/1.png", ns=(0, 1))


def add(root: Path) -> None:
    Image.new("RGB", (6, 4)).save(root / "train/bee/9.png")


def remove(root: Path) -> None:
    (root / "train/bee/1.png").unlink()


def truncate(root: Path) -> None:
    path = root / cache.FOLDER / "train.npy"
    path.write_bytes(path.read_bytes()[:-200])


def empty(root: Path) -> None:
    (root / cache.FOLDER / "train.npy").write_bytes(b"")


def flip_one_pixel(root: Path) -> None:
    path = root / cache.FOLDER / "train.npy"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("change", [rewrite, touch, add, remove, truncate, empty, flip_one_pixel])
def test_stale_or_damaged_cache_is_rebuilt(change: Callable[[Path], None], tmp_path: Path) -> None:
    write_tree(tmp_path)
    read(tmp_path)
    change(tmp_path)
    paths = sorted(str(path) for path in tmp_path.glob("train/*/*.png"))
    assert np.array_equal(read(tmp_path).train.inputs.numpy(), images.decode(paths, threaded=False))
    stored = (tmp_path / cache.FOLDER / "train.npy").read_bytes()
    read(tmp_path)
    assert (tmp_path / cache.FOLDER / "train.npy").read_bytes() == stored


def test_unwritable_root_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(tmp_path)
    expected = read(tmp_path).train
    for path in (tmp_path / cache.FOLDER).iterdir():
        path.unlink()
    (tmp_path / cache.FOLDER).rmdir()
    (tmp_path / cache.FOLDER).touch()  # a file where the folder should be stops even root, whom permissions do not
    assert equal(read(tmp_path).train, expected)
    assert f"data.root: {tmp_path / cache.FOLDER}: no cache there" in caplog.text


def test_full_disk_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    write_tree(tmp_path)
    monkeypatch.setattr(np, "save", fail)
    assert len(read(tmp_path).train) == 9
    assert "No space left" in caplog.text
    assert [path.name for path in (tmp_path / cache.FOLDER).iterdir()] == ["lock"]


def _build_slowly(root: Path, ready: Any) -> None:
    def build() -> np.ndarray:
        with (root / "builds").open("a") as log:
            log.write("x")
        time.sleep(0.1)  # long enough for the others to find no cache
        return np.arange(1000)

    ready.wait()
    assert cached_array(root, "numbers", "v1", build).sum() == 499500


def test_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    workers = [context.Process(target=_build_slowly, args=(tmp_path, ready)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "builds").read_text() == "x"
