"""The laws of data loading: what is read, held out, normalised and cached. No test needs a downloaded data set."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flare_dist.data import cache, images
from flare_dist.data.cache import cached_array
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.data.datasets import DataSplits, load
from flare_dist.data.examples import Examples
from flare_dist.data.sources import SOURCES, Source

SMALL = SyntheticConfig(examples=300, test_examples=80, shape=(3, 8, 8), classes=5, groups=7)


def equal(a: Examples, b: Examples) -> bool:
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)


def write_tree(root: Path, size: tuple[int, int] = (6, 4), each: int = 3) -> dict[str, np.ndarray]:
    """A folder of PNGs (lossless, so that pixels can be compared) of three classes; pixels by relative path."""
    rng = np.random.default_rng(0)
    pixels = {}
    for part in ("train", "test"):
        for name in ("ant", "bee", "cow"):
            (root / part / name).mkdir(parents=True)
            for i in range(each):
                path = f"{part}/{name}/{i}.png"
                pixels[path] = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels[path]).save(root / path)
    return pixels


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def folder(root: Path) -> DataSplits:
    return load(DataConfig(name="image_folder", root=str(root)), seed=0)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded although the cache is good")

    monkeypatch.setattr(images, "decode", fail)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": -1}, "data.alpha: must be positive, got -1"),
        ({"alpha": float("nan")}, "data.alpha: must be positive, got nan"),
        ({"validation": 1.0}, r"data.validation: must be in \[0, 1\), got 1.0"),
        ({"examples_per_client": 0}, "data.examples_per_client: must be at least 1, got 0"),
        ({"shards_per_client": 0}, "data.shards_per_client: must be at least 1, got 0"),
        ({"name": "imagenet"}, "data.name: must be one of digits, .*, got imagenet"),
        ({"partition": "non-iid"}, "data.partition: must be one of iid, .*, got non-iid"),
        ({"normalize": "l2"}, "data.normalize: must be one of standard, unit, none, got l2"),
        ({"root": "caf\udce9"}, r"data.root: the name has bytes that are not UTF-8 .*, got caf\\xe9"),
        ({"augment": "mixup"}, "data.augment: must be one of none, .*, got mixup"),
    ],
)
def test_config_errors_name_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        DataConfig(**values)


@pytest.mark.parametrize("key", ["examples", "test_examples", "classes", "groups", "shape"])
def test_synthetic_config_errors_name_the_key(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.synthetic\.{key}: "):
        SyntheticConfig(**{key: (3, 0, 8) if key == "shape" else 0})  # type: ignore[arg-type]


def test_help_describes_every_key() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--data", type=DataConfig, default=DataConfig())
    described = {action.dest: action.help for action in parser._actions}
    keys = [f"data.{key}" for key in DataConfig.__dataclass_fields__ if key != "synthetic"]
    keys += [f"data.synthetic.{key}" for key in SyntheticConfig.__dataclass_fields__]
    assert [key for key in keys if not described.get(key)] == []


def test_digits_are_split_the_same_way_for_every_seed() -> None:
    splits = load(DataConfig(), seed=0)
    assert splits.train.inputs.dtype == torch.uint8
    assert splits.train.inputs.shape[1:] == (1, 8, 8)
    assert len(splits.train) + len(splits.test) == 1797
    in_all = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert torch.equal(splits.test.labels.bincount(), in_all // 5)
    assert equal(splits.train, load(DataConfig(), seed=1).train)


def test_normalize_gives_what_it_says() -> None:
    def range_of(normalize: str, name: str = "digits") -> Tensor:
        splits = load(DataConfig(name=name, normalize=normalize, synthetic=SMALL), seed=0)
        return (splits.train.inputs - splits.mean.view(-1, 1, 1)) / splits.std.view(-1, 1, 1)

    x = range_of("standard", "synthetic")
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3))
    assert (range_of("unit").min(), range_of("unit").max()) == (0, 1)
    assert range_of("unit", "synthetic").max() == 1
    assert range_of("none").max() == 16


def test_statistics_leave_the_held_out_part_alone() -> None:
    config = DataConfig(name="synthetic", validation=0.5, synthetic=SMALL)
    splits = load(config, seed=0)
    torch.testing.assert_close(splits.mean, splits.train.inputs.double().mean((0, 2, 3)).float())


def test_a_constant_channel_is_not_divided_by_zero(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.new("RGB", (4, 4), (7, 0, 255)).save(tmp_path / part / "only" / "a.png")
    splits = folder(tmp_path)
    assert splits.mean.tolist() == [7, 0, 255]
    assert splits.std.tolist() == [1, 1, 1]


def test_validation_is_seeded_disjoint_and_complete() -> None:
    def held(seed: int) -> DataSplits:
        return load(DataConfig(validation=0.25), seed)

    splits, whole = held(3), load(DataConfig(), 3).train
    assert splits.validation is not None
    assert len(splits.validation) == round(0.25 * len(whole))
    both = torch.cat([splits.train.inputs, splits.validation.inputs]).flatten(1)
    assert sorted(both.tolist()) == sorted(whole.inputs.flatten(1).tolist())
    again, other = held(3).validation, held(4).validation
    assert again is not None
    assert other is not None
    assert equal(splits.validation, again)
    assert not equal(splits.validation, other)


def test_validation_must_leave_something() -> None:
    with pytest.raises(ValueError, match=r"^data\.validation: "):
        load(DataConfig(name="synthetic", validation=0.9, synthetic=SyntheticConfig(examples=3)), seed=0)


def test_synthetic_is_seeded_and_learnable() -> None:
    config = DataConfig(name="synthetic", synthetic=SMALL)
    splits = load(config, seed=0)
    assert splits.train.inputs.shape == (300, 3, 8, 8)
    assert splits.train.groups is not None
    assert splits.train.groups.unique().tolist() == list(range(7))
    assert equal(splits.train, load(config, seed=0).train)
    assert not equal(splits.train, load(config, seed=1).train)
    x, y = splits.train.inputs.float().flatten(1), splits.train.labels
    means = torch.stack([x[y == c].mean(0) for c in range(5)])
    guess = torch.cdist(splits.test.inputs.float().flatten(1), means).argmin(1)
    assert (guess == splits.test.labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "train-images-idx3-ubyte"),
        ("fashion_mnist", "t10k-labels-idx1-ubyte"),
        ("emnist", "emnist-balanced-test-images-idx3-ubyte"),
        ("emnist_byclass", "emnist-byclass-train-labels-idx1-ubyte"),
        ("cifar10", "data_batch_5"),
        ("cifar100", "meta"),
    ],
)
def test_missing_files_are_named_and_nothing_is_fetched(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^data\.root: {name} needs .*{file}.*data\.download=true would fetch them$"):
        load(DataConfig(name=name, root=str(tmp_path)), seed=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "place", "transposed"),
    [
        ("mnist", "MNIST/raw/{}", False),
        ("fashion_mnist", "FashionMNIST/raw/{}", False),
        ("emnist", "EMNIST/raw/emnist-balanced-{}", True),
    ],
)
def test_idx_files_are_read_upright(name: str, place: str, transposed: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for part in ("train", "test" if transposed else "t10k"):
        write_idx(tmp_path / f"{place.format(part)}-images-idx3-ubyte", pixels)
        write_idx(tmp_path / f"{place.format(part)}-labels-idx1-ubyte", np.arange(12, dtype=np.uint8) % 10)
    train = load(DataConfig(name=name, root=str(tmp_path)), seed=0).train
    expected = torch.from_numpy(pixels)
    assert torch.equal(train.inputs[:, 0], expected.mT if transposed else expected)
    assert train.labels.tolist() == [i % 10 for i in range(12)]
    assert train.labels.dtype == torch.int64
    for file in tmp_path.rglob("*train-*"):
        good = file.read_bytes()
        file.write_bytes(good[:-5] + b"\xff" * 5 if "labels" in file.name else good[:-100])
        with pytest.raises(ValueError, match=rf"^data\.root: {tmp_path}/.*: {name} is damaged, delete it \(\w"):
            load(DataConfig(name=name, root=str(tmp_path)), seed=0)
        file.write_bytes(good)


def test_cifar_batches_are_read_in_channel_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # real files have known checksums
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3072), dtype=np.uint8)
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    (base / "batches.meta").touch()
    for data, name in zip(pixels, [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (base / name).write_bytes(pickle.dumps({"data": data, "labels": [3, 9]}))
    splits = load(DataConfig(name="cifar10", root=str(tmp_path)), seed=0)
    assert torch.equal(splits.train.inputs, torch.from_numpy(pixels[:5]).view(10, 3, 32, 32))
    assert splits.train.labels.tolist() == [3, 9] * 5
    assert splits.train.inputs.is_contiguous()


def test_failed_download_names_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    def fail(self: MNIST) -> None:
        raise OSError("no network")

    monkeypatch.setattr(MNIST, "download", fail)
    with pytest.raises(ValueError, match=r"^data\.download: could not fetch mnist .*no network"):
        load(DataConfig(name="mnist", root=str(tmp_path), download=True), seed=0)


def test_folder_is_decoded_in_sorted_order_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_tree(tmp_path)
    first = folder(tmp_path)
    expected = [pixels[path].transpose(2, 0, 1) for path in sorted(pixels) if path.startswith("train")]
    assert torch.equal(first.train.inputs, torch.from_numpy(np.stack(expected)))
    assert first.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert first.num_classes == 3
    forbid_decoding(monkeypatch)
    second = folder(tmp_path)
    assert equal(first.train, second.train)
    assert equal(first.test, second.test)
    assert not list(tmp_path.rglob("*.tmp"))


def test_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / path) for path in write_tree(tmp_path)]
    monkeypatch.setattr(images, "_BLOCK", 2)
    assert np.array_equal(images.decode(paths, threaded=True), images.decode(paths, threaded=False))


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
    folder(tmp_path)
    change(tmp_path)
    paths = sorted(str(path) for path in tmp_path.glob("train/*/*.png"))
    assert np.array_equal(folder(tmp_path).train.inputs.numpy(), images.decode(paths, threaded=False))
    stored = (tmp_path / cache.FOLDER / "train.npy").read_bytes()
    folder(tmp_path)
    assert (tmp_path / cache.FOLDER / "train.npy").read_bytes() == stored


def test_unwritable_root_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(tmp_path)
    expected = folder(tmp_path).train
    for path in (tmp_path / cache.FOLDER).iterdir():
        path.unlink()
    (tmp_path / cache.FOLDER).rmdir()
    (tmp_path / cache.FOLDER).touch()  # a file where the folder should be stops even root, whom permissions do not
    assert equal(folder(tmp_path).train, expected)
    assert f"data.root: {tmp_path / cache.FOLDER}: no cache there" in caplog.text


def test_full_disk_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    write_tree(tmp_path)
    monkeypatch.setattr(np, "save", fail)
    assert len(folder(tmp_path).train) == 9
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


def test_first_image_of_another_size_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for name in ("train/cow/0.png", "train/bee/2.png"):
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"^data\.root: .*train/bee/2\.png: is 5x4, but .*ant/0\.png is 6x4; all"):
        folder(tmp_path)


def test_train_and_test_images_have_one_size(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for path in tmp_path.glob("test/*/*.png"):
        Image.new("RGB", (5, 4)).save(path)
    with pytest.raises(ValueError, match=r"^data\.root: .*test/ant/0\.png: is 5x4, but .*train/ant/0\.png is 6x4; all"):
        folder(tmp_path)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "train/bee/2.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"^data\.root: .*train/bee/2\.png: cannot be read"):
        folder(tmp_path)


LABELS = torch.arange(4) % 3
INPUTS = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
NOT_A_NUMBER = torch.full((4, 1, 2, 2), float("nan"))


def given(source: Source, config: DataConfig, seed: int) -> Source:
    return source


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        (Examples(INPUTS, LABELS.float()), r"labels must be int64 \[4\], .*, got float32 \[4\]"),
        (Examples(INPUTS, LABELS.int()), r"labels must be int64 \[4\], .*, got int32 \[4\]"),
        (Examples(INPUTS, torch.eye(4).long()), r"labels must be int64 \[4\], .*, got int64 \[4, 4\]"),
        (Examples(INPUTS, LABELS + 1), "labels must be classes 0 to 2, got 3"),
        (Examples(INPUTS, LABELS - 1), "labels must be classes 0 to 2, got -1"),
        (Examples(INPUTS, LABELS[:3]), r"labels must be int64 \[4\], .*, got int64 \[3\]"),
        (Examples(INPUTS.double(), LABELS), r"inputs must be images uint8 or float32 .*, got float64 \[4, 1, 2, 2\]"),
        (Examples(INPUTS[:, 0], LABELS), r"inputs must be .*, got uint8 \[4, 2, 2\]"),
        (Examples(INPUTS.flatten(1).float(), LABELS), r"inputs must be .*, got float32 \[4, 4\]"),
        (Examples(NOT_A_NUMBER, LABELS), "inputs must be finite, got infinite ones or NaN"),
        (Examples(INPUTS, LABELS, LABELS.float()), r"groups must be int64 \[4\], got float32 \[4\]"),
        (Examples(INPUTS[:0], LABELS[:0]), "there are no examples"),
    ],
)
def test_what_no_task_takes_is_refused(examples: Examples, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that a user adds to the sources fails in words, not in the loss or in a partitioner."""
    good = Examples(INPUTS, LABELS)
    for part, source in (("train", Source(examples, good, 3)), ("test", Source(good, examples, 3))):
        monkeypatch.setitem(SOURCES, "mine", partial(given, source))
        with pytest.raises(ValueError, match=rf"^data\.name: mine: {part}: {said}$"):
            load(DataConfig(name="mine"), seed=0)


def test_test_inputs_have_the_shape_of_training_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(Examples(INPUTS, LABELS), Examples(INPUTS[..., :1], LABELS), 3)
    monkeypatch.setitem(SOURCES, "mine", partial(given, source))
    with pytest.raises(ValueError, match=r"^data\.name: mine: test: inputs have the shape \(1, 2, 1\), those of train"):
        load(DataConfig(name="mine"), seed=0)
