"""Trees of images decoded into one array: once, in order, and refused by the name of the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flare_dist.cli import main
from flare_dist.data import images
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from tests.helpers.images import (
    GREY,
    equal,
    grey,
    pixels,
    png,
    read,
    tree,
    write_tree,
)


def test_unused_bits_are_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """12 bits in 16 look like black images; only the user can tell which value is white."""
    low = (GREY.astype(np.uint16) * 16).astype(">u2")
    tree(tmp_path, "a.png", png(low, 16, 0))
    assert torch.equal(pixels(tmp_path, 4080), grey(GREY))
    assert not caplog.messages
    pixels(tmp_path)
    assert [message.partition("; ")[0] for message in caplog.messages] == [
        f"data.root: {tmp_path}: the brightest value in train/ is 15 of 255"
    ]


def test_the_cache_of_an_older_way_of_decoding_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a.png", Image.fromarray(GREY))
    with monkeypatch.context() as older:
        older.setattr(images, "_DECODING", "rgb 1")
        older.setattr(images, "read_image", lambda path, spec: np.zeros((3, 4, 6), np.uint8))
        assert not pixels(tmp_path).any()
    assert torch.equal(pixels(tmp_path), grey(GREY))


def test_the_command_line_needs_one_line_for_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tree(tmp_path, "b.png", png(GREY, 8, 0, (20000, 5000)))
    assert main(["partition", "--data.name", "image_folder", "--data.root", str(tmp_path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: data.root: {path}: cannot be read (20000x5000 pixels")


def test_a_pipe_and_a_file_without_permission_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree(tmp_path, "a.png", Image.fromarray(GREY)).with_name("b.png")
    os.mkfifo(path)
    with pytest.raises(ValueError, match=rf"^data\.root: {path}: is not a file$"):
        pixels(tmp_path)
    path.unlink()

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", deny)
    with pytest.raises(ValueError, match=r"^data\.root: .*/train/one/a\.png: cannot be read \(Permission denied\)$"):
        pixels(tmp_path)


def test_more_images_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree(tmp_path, "a.png", Image.fromarray(GREY))

    def fail(*_: object) -> None:
        raise MemoryError("Unable to allocate 1.2 TiB")

    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(ValueError, match=rf"^data\.root: {path}: 1 images of its size, 6x4, do not fit .*1\.2 TiB"):
        pixels(tmp_path)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded although the cache is good")

    monkeypatch.setattr(images, "decode", fail)


def test_folder_is_decoded_in_sorted_order_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_tree(tmp_path)
    first = read(tmp_path)
    expected = [pixels[path].transpose(2, 0, 1) for path in sorted(pixels) if path.startswith("train")]
    assert torch.equal(first.train.inputs, torch.from_numpy(np.stack(expected)))
    assert first.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert first.num_classes == 3
    forbid_decoding(monkeypatch)
    second = read(tmp_path)
    assert equal(first.train, second.train)
    assert equal(first.test, second.test)
    assert not list(tmp_path.rglob("*.tmp"))


def test_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / path) for path in write_tree(tmp_path)]
    monkeypatch.setattr(images, "_BLOCK", 2)
    assert np.array_equal(images.decode(paths, threaded=True), images.decode(paths, threaded=False))


def test_first_image_of_another_size_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for name in ("train/cow/0.png", "train/bee/2.png"):
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"^data\.root: .*train/bee/2\.png: is 5x4, but .*ant/0\.png is 6x4; all"):
        read(tmp_path)


def test_train_and_test_images_have_one_size(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for path in tmp_path.glob("test/*/*.png"):
        Image.new("RGB", (5, 4)).save(path)
    with pytest.raises(ValueError, match=r"^data\.root: .*test/ant/0\.png: is 5x4, but .*train/ant/0\.png is 6x4; all"):
        read(tmp_path)


def test_the_remedy_for_differing_sizes_is_named_and_works(tmp_path: Path) -> None:
    """Also where only the test images differ, and whatever their mode."""
    pixels = write_tree(tmp_path)
    deep = np.full((30, 20), 40000, np.uint16)
    modes = [Image.new("LA", (9, 7), (50, 0)), Image.fromarray(deep), Image.new("CMYK", (1, 1)), Image.new("1", (2, 2))]
    for place, image in zip(("train/bee/2", "train/cow/1", "test/ant/0", "test/bee/0"), modes):
        image.save((tmp_path / place).with_suffix(".tif" if image.mode == "CMYK" else ".png"))
    (tmp_path / "test/ant/0.png").unlink()
    with pytest.raises(ValueError, match=r"images must have one size, set data\.image_size to .*, e\.g\. \[4, 6\]$"):
        read(tmp_path)
    data = load(DataConfig(name="image_folder", root=str(tmp_path), image_size=(4, 6)), seed=0)
    assert data.input_shape == (3, 4, 6)
    first = torch.from_numpy(pixels["train/ant/0.png"].transpose(2, 0, 1))
    assert torch.equal(data.train.inputs[0], first)  # of that size already
    assert (data.train.inputs[5] == 255).all()  # transparent
    assert (data.train.inputs[7] == round(40000 / 257)).all()


def test_a_size_of_one_number_is_both_sides_and_the_cache_is_of_one_size(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for size in (5, 8, (8, 5), 5):
        data = load(DataConfig(name="image_folder", root=str(tmp_path), image_size=size), seed=0)
        assert data.input_shape == (3, *(size if isinstance(size, tuple) else (size, size)))
    assert read(tmp_path).input_shape == (3, 4, 6)


def test_grey_images_may_have_one_channel(tmp_path: Path) -> None:
    write_tree(tmp_path)
    data = load(DataConfig(name="image_folder", root=str(tmp_path), image_channels=1), seed=0)
    assert data.input_shape == (1, 4, 6)
    assert data.mean.shape == (1,)


def test_classes_keep_their_names(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "train/ant").rename(tmp_path / "train/\udce9")
    (tmp_path / "test/ant").rename(tmp_path / "test/\udce9")
    assert read(tmp_path).class_names == ("bee", "cow", "\\xe9")


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "train/bee/2.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"^data\.root: .*train/bee/2\.png: cannot be read"):
        read(tmp_path)
