"""Data sets by name: bundled, drawn, and read from files. No test needs a downloaded data set."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from tests.helpers.images import equal


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_digits_are_split_the_same_way_for_every_seed() -> None:
    splits = load(DataConfig(), seed=0)
    assert splits.train.inputs.dtype == torch.uint8
    assert splits.train.inputs.shape[1:] == (1, 8, 8)
    assert len(splits.train) + len(splits.test) == 1797
    in_all = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert torch.equal(splits.test.labels.bincount(), in_all // 5)
    assert equal(splits.train, load(DataConfig(), seed=1).train)


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
    with pytest.raises(ValueError, match=rf"^data\.root: {name} needs .*{file}.*data\.download=true fetches them$"):
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
    data = load(DataConfig(name=name, root=str(tmp_path)), seed=0)
    train = data.train
    assert len(data.class_names) == data.num_classes
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
