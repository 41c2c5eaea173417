"""The trial of Triton finds each kernel that is wrong; that those of this package are right is proved elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.compression import elias_fano, gpu_trial
from flare_dist.compression.gpu_segments import Parts
from flare_dist.compression.gpu_sums import add_row_by_row
from flare_dist.compression.sparsifiers import largest

CPU = torch.device("cpu")


def largest_of_segments(vector: Tensor, parts: Parts) -> Tensor:
    programs = parts.programs.T.tolist()
    ends = {number: stop for number, _, stop, _ in programs}
    starts = {number: start for number, start, _, _ in reversed(programs)}
    counts = parts.segments[0].tolist()
    found = [largest(vector[starts[number] : ends[number]], k) + starts[number] for number, k in enumerate(counts)]
    return torch.cat(found)


def read(data: Tensor, n: int, k: int) -> Tensor:
    return elias_fano.read(data, n, k).int()


RIGHT: dict[str, Any] = {
    "largest_on_gpu": largest,
    "largest_of_segments": largest_of_segments,
    "add_runs": add_row_by_row,
    "write_on_gpu": elias_fano.write,
    "read_on_gpu": read,
}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name, function in RIGHT.items():
        monkeypatch.setattr(gpu_trial, name, function)
    gpu_trial.works.cache_clear()
    yield monkeypatch
    gpu_trial.works.cache_clear()


def test_right_kernels_are_used(kernels: pytest.MonkeyPatch) -> None:
    assert gpu_trial.works(CPU)


def one_bit(data: Tensor) -> Tensor:
    changed = data.clone()
    changed.view(-1)[-5] ^= 1
    return changed


def last_first(total: Tensor, places: Tensor, values: Tensor, divisor: int) -> None:
    add_row_by_row(total, places.flip(0), values.flip(0), divisor)


def by_reciprocal(total: Tensor, places: Tensor, values: Tensor, divisor: int) -> None:
    add_row_by_row(total, places, values * (1 / divisor), 1)


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        ("largest_on_gpu", lambda vector, k: largest(-vector.abs().reciprocal(), k), "selection is not the one of a"),
        (
            "largest_of_segments",
            lambda vector, parts: largest_of_segments(vector, parts) + 1,
            "selection from segments",
        ),
        ("add_runs", last_first, "its sums are not those"),
        ("add_runs", by_reciprocal, "its sums are not those"),
        ("write_on_gpu", lambda indices, n: one_bit(elias_fano.write(indices, n)), "its codes of positions"),
        ("read_on_gpu", lambda data, n, k: read(one_bit(data), n, k), "its codes of positions"),
    ],
)
def test_a_wrong_kernel_is_found(
    kernels: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, wrong: Any, reason: str
) -> None:
    kernels.setattr(gpu_trial, name, wrong)
    with caplog.at_level(logging.WARNING):
        assert not gpu_trial.works(CPU)
    assert reason in caplog.text


def test_each_gpu_is_tried_once_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []
    monkeypatch.setattr(gpu_trial, "works", tried.append)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    gpu_trial.warm_up([torch.device("cpu"), first, second, first])
    assert sorted(tried, key=str) == [first, second]
