"""The code of positions on a GPU is the one on a CPU, whatever the positions: proved under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flare_dist.compression.elias_fano import read, sizes, write
from flare_dist.compression.gpu_bits import read_on_gpu, write_on_gpu
from tests.helpers.kernels import compiled_for_h100, interpreting, needs_triton

MANY = 2**31 - 1  # as many entries as a vector may have
KERNELS = [("write_code", 256), ("count_ones", 2048), ("read_code", 2048)]


def drawn(n: int, k: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=draws)[:k].sort().values


def rows_of() -> dict[str, tuple[list[Tensor], int]]:
    """Rows of as many positions each, and the length of the vector."""
    far = torch.arange(300) * 2**20 + 5
    return {
        "none": ([drawn(50, 0)], 50),
        "one": ([torch.tensor([0]), torch.tensor([4999]), torch.tensor([70])], 5000),
        "the only one": ([torch.tensor([0])], 1),
        "all": ([torch.arange(3000)], 3000),
        "all but one": ([drawn(2000, 1999, seed) for seed in range(3)], 2000),
        "a hundredth": ([drawn(100_000, 1000, seed) for seed in range(8)], 100_000),
        "a thousandth, of which whole bytes are written": ([drawn(300_000, 300, seed) for seed in range(3)], 300_000),
        "three of very many": (
            [torch.tensor([0, 2**20, MANY - 1]), torch.tensor([MANY - 3, MANY - 2, MANY - 1])],
            MANY,
        ),
        "far apart": ([far, far + 2**20 - 6], 300 * 2**20),
        "all at one end": ([torch.arange(600), torch.arange(600) + 59_400], 60_000),
        "a border of programs": ([drawn(8192, 256), drawn(8192, 256, 1)], 8192),
    }


ROWS = rows_of()


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with interpreting() as pool:
        yield pool


@needs_triton
@pytest.mark.parametrize("name", ROWS)
def test_positions_are_written_as_without_triton_and_read_again(interpreter: ProcessPoolExecutor, name: str) -> None:
    rows, n = ROWS[name]
    k = len(rows[0])
    codes = [write(row, n) for row in rows]
    for row, code in zip(rows, codes):
        assert torch.equal(interpreter.submit(write_on_gpu, row, n).result(), code)
    # As messages lie in what was gathered: behind headers, with something else behind them.
    slots = torch.randint(256, (len(rows), len(codes[0]) + 40), dtype=torch.uint8)
    slots[:, 16 : 16 + len(codes[0])] = torch.stack(codes)
    found = interpreter.submit(_read_from_slots, slots, len(codes[0]), n, k).result()
    assert found.dtype == torch.int32
    assert torch.equal(found, torch.stack(rows).int())
    assert torch.equal(interpreter.submit(read_on_gpu, codes[0], n, k).result(), rows[0])


def _read_from_slots(slots: Tensor, nbytes: int, n: int, k: int) -> Tensor:
    return read_on_gpu(slots[:, 16 : 16 + nbytes], n, k)


@needs_triton
@pytest.mark.parametrize(("n", "k"), [(5000, 40), (300_000, 300), (3000, 3000)])
@pytest.mark.parametrize("byte", [0, 255, None])
def test_damaged_bytes_are_read_as_without_triton(
    interpreter: ProcessPoolExecutor, n: int, k: int, byte: int | None
) -> None:
    """More ones than positions, fewer, and none."""
    nbytes = sum(sizes(n, k)[1:])
    draws = torch.Generator().manual_seed(k)
    data = torch.randint(256, (2, nbytes), dtype=torch.uint8, generator=draws) & 17
    if byte is not None:
        data.fill_(byte)
    found = interpreter.submit(read_on_gpu, data, n, k).result()
    assert torch.equal(found, read(data, n, k).int())


@needs_triton
@pytest.mark.parametrize("integers", ["i32", "i64"])
@pytest.mark.parametrize(("name", "tile"), KERNELS)
def test_the_compiler_takes_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tile: int, integers: str
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled_for_h100(name, {"tile": tile}, integers)
    assert (".or.b32" in code) == (name == "write_code")  # an atomic one, for neighbours share words
