"""The selection on a GPU is the one on a CPU: under Triton's interpreter here, and on a GPU where there is one."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from flare_dist.compression import gpu_sums, gpu_trial
from flare_dist.compression.gpu_segments import largest_of_segments, parts_of
from flare_dist.compression.gpu_selection import largest_on_gpu
from flare_dist.compression.gpu_trial import pays
from flare_dist.compression.segments import Segment
from flare_dist.compression.sparsifiers import largest
from tests.helpers.kernels import compiled_for_h100, interpreting, needs_triton

SAMPLE = 256
KERNELS: list[tuple[str, dict[str, int]]] = [
    ("find_bound", {"sample": 2**14}),
    ("count_candidates", {"tile": 2048}),
    ("gather_candidates", {"tile": 1024}),
    *(("count_digits", {"place": place, "tile": 2048}) for place in range(4)),
    ("count_kept", {"tile": 2048}),
    ("write_positions", {"tile": 1024}),
    ("add_runs", {"tile": 256}),
    *(("count_digits_of_parts", {"place": place, "tile": 1024}) for place in (0, 3)),
    ("count_kept_of_parts", {"tile": 1024}),
    ("write_positions_of_parts", {"tile": 1024}),
]


def vector(kind: str, n: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    normal = torch.randn(n, generator=rng)
    if kind == "one huge":
        return normal.index_fill(0, torch.tensor([n - 2]), -1e30)
    if kind == "sampled ones are large":  # then fewer than k entries are candidates
        return normal.index_add(0, torch.arange(SAMPLE) * (n // SAMPLE), torch.full((SAMPLE,), 100.0))
    if kind == "sampled ones are small":  # then there is no room for the candidates
        return normal.index_copy(0, torch.arange(SAMPLE) * (n // SAMPLE), torch.rand(SAMPLE, generator=rng) * 1e-3)
    return {
        "normal": normal,
        "ties": torch.randint(-2, 3, (n,), generator=rng).float(),
        "nearly all zero": normal.where(normal.abs() > 2.5, torch.tensor(-0.0)),
        "all zero": torch.zeros(n),
        "signed zeros": torch.zeros(n).copysign(normal),
        "all equal": torch.full((n,), -0.3).copysign(normal),
        "heavy tail": torch.empty(n).cauchy_(generator=rng) ** 3,
        "ascending": torch.arange(n).float(),
        "descending": -torch.arange(n).flip(0).float(),
        "subnormal": normal * 1e-42,
        "huge": normal.clamp(-3, 3) * 1e38,
    }[kind]


KINDS = ["normal", "ties", "nearly all zero", "all zero", "signed zeros", "all equal", "heavy tail", "ascending"]
KINDS += ["descending", "subnormal", "huge", "one huge", "sampled ones are large", "sampled ones are small"]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with interpreting() as pool:
        yield pool


def _select(x: Tensor, k: int) -> tuple[Tensor, int]:
    """What is selected, and the number of candidates, which lies in the only zeros that are made."""
    zeros, made = torch.zeros, []

    def kept_zeros(*arguments: Any, **options: Any) -> Tensor:
        made.append(zeros(*arguments, **options))
        return made[-1]

    with patch("torch.zeros", kept_zeros):
        found = largest_on_gpu(x, k, SAMPLE, programs=4)
    return found, int(made[0][1]) if made else 0


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
def test_it_selects_what_a_cpu_selects(interpreter: ProcessPoolExecutor, kind: str) -> None:
    n = 6_151  # four programs, of which one has a tile of a few entries
    x = vector(kind, n)
    for k in (0, 1, n // 100, n // 2, n):
        found, _ = interpreter.submit(_select, x, k).result()
        assert found.dtype == torch.int64
        assert torch.equal(found, largest(x, k)), k


@needs_triton
@pytest.mark.parametrize("n", [2, 3, 1023, 1024, 1025, 2048, 4097])
def test_any_length(interpreter: ProcessPoolExecutor, n: int) -> None:
    """A tile has 1024 or 2048 entries; ties lie on both sides of every border."""
    x = vector("ties", n)
    for k in {1, n // 20, n // 3, n - 1} - {0}:
        assert torch.equal(interpreter.submit(_select, x, k).result()[0], largest(x, k)), k


@needs_triton
def test_the_sample_leaves_few_candidates_or_none(interpreter: ProcessPoolExecutor) -> None:
    n, k = 10_000, 100

    def candidates(kind: str) -> int:
        return interpreter.submit(_select, vector(kind, n), k).result()[1]

    for kind in ("normal", "heavy tail", "descending", "one huge"):
        assert k <= candidates(kind) < 8 * k
    for kind in ("all equal", "signed zeros", "subnormal"):  # of subnormal numbers two digits are zero
        assert candidates(kind) == 0
    assert 0 < candidates("sampled ones are large") < k
    assert candidates("sampled ones are small") > 9000


def _select_from_segments(x: Tensor, segments: list[Segment]) -> Tensor:
    return largest_of_segments(x, parts_of(segments, x.device))


def segments_of(numels: list[int], density: float) -> list[Segment]:
    ends = list(itertools.accumulate(numels, initial=7))
    segments = [Segment(start, numel, max(1, round(density * numel))) for start, numel in zip(ends, numels)]
    return [*segments, Segment(ends[-1], 1100, 1100)]  # one is kept whole


@needs_triton
@pytest.mark.parametrize("kind", ["normal", "ties", "nearly all zero", "all equal", "subnormal", "huge"])
@pytest.mark.parametrize("density", [0.01, 0.3])
def test_segments_are_selected_from_as_if_alone(interpreter: ProcessPoolExecutor, kind: str, density: float) -> None:
    """Of one entry, of less and more than a tile, and of several programs; the first begins at an odd place."""
    segments = segments_of([1, 5, 1024, 1025, 300, 17_000, 2], density)
    x = vector(kind, 21_000)
    expected = torch.cat([largest(x[s.offset : s.offset + s.numel], s.k) + s.offset for s in segments])
    assert torch.equal(interpreter.submit(_select_from_segments, x, segments).result(), expected)


def _add(places: Tensor, values: Tensor) -> Tensor:
    total = torch.zeros(3000)
    for some in (slice(0, 3), slice(3, None)):
        gpu_sums.add_runs(total, places[some], values[some], 3)
    return total


@needs_triton
@pytest.mark.parametrize(("rows", "k"), [(1, 5), (2, 1), (8, 300), (40, 128)])
def test_rows_are_added_up_in_their_order(interpreter: ProcessPoolExecutor, rows: int, k: int) -> None:
    """Positions that all rows share, some share and none shares; of -0, subnormal and large values the bits as well."""
    draws = torch.Generator().manual_seed(rows)
    shared = torch.arange(k // 2)
    own = [torch.randperm(2700, generator=draws)[: k - len(shared)] + 300 for _ in range(rows)]
    places = torch.stack([torch.cat([shared, each.sort().values]) for each in own])
    values = torch.randn(rows, k, generator=draws) * 10.0 ** torch.randint(-40, 30, (rows, k), generator=draws)
    values[:, 0] = -0.0
    expected = torch.zeros(3000)
    gpu_sums.add_row_by_row(expected, places, values, 3)
    assert torch.equal(interpreter.submit(_add, places, values).result().view(torch.int32), expected.view(torch.int32))


@needs_triton
def test_positions_outside_the_total_are_left_out(interpreter: ProcessPoolExecutor) -> None:
    places = torch.tensor([[-5, -1, 0, 2999, 3000, 2**31 - 1]])
    found = interpreter.submit(_add, places, torch.ones(1, 6)).result()
    assert found.nonzero().flatten().tolist() == [0, 2999]


@needs_triton
@pytest.mark.parametrize("integers", ["i32", "i64"])
@pytest.mark.parametrize(("name", "constants"), KERNELS)
def test_the_compiler_takes_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, constants: dict[str, int], integers: str
) -> None:
    """For an H100, without one; lengths of 64 bits are those of vectors of 2^31 entries and more."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled_for_h100(name, constants, integers, num_warps=32 if name == "find_bound" else 4)
    if name != "find_bound" and "parts" not in name and name != "add_runs":  # which begin anywhere
        assert re.search(r"ld\.global(\.\w+)*\.v4", code)


def test_a_cpu_needs_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(gpu_trial, "works", refuse)
    assert not pays(torch.zeros(2**20))


def unusable(vector: Tensor, k: int) -> Tensor:
    raise RuntimeError("Failed to find C compiler")


def wrong(vector: Tensor, k: int) -> Tensor:
    return torch.arange(k)


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [(unusable, "Failed to find C compiler"), (wrong, "its selection is not the one of a sort")],
)
def test_where_triton_does_not_work_that_is_said_once(
    kernels: Callable[[Tensor, int], Tensor],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(gpu_trial, "largest_on_gpu", kernels)
    gpu_trial.works.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [gpu_trial.works(torch.device("cpu")) for _ in range(2)] == [False, False]
    gpu_trial.works.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        f"top-k on cpu by torch.topk, as Triton cannot be used: {reason}"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n", [2**16, 2**20 + 13, 11_173_962])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_selects_the_same_and_is_not_waited_for(kind: str, n: int) -> None:
    x = vector(kind, n)
    there = x.cuda()
    assert pays(there)
    shifted = torch.cat([there.new_zeros(1), there])[1:]  # not at a multiple of 16 bytes
    for k in (1, n // 10_000, n // 1000, n // 100, n // 2, n):
        expected = largest(x, k)
        for own in (there, shifted):
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = largest(own, k)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert torch.equal(found.cpu(), expected), k
