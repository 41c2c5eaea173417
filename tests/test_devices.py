"""What goes to a GPU is not waited for, and what has no room there is kept elsewhere or refused."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

from flare_dist.data.examples import Examples
from flare_dist.devices import check_room, moved_unwaited, roomy
from flare_dist.units import show_bytes
from tests.helpers.batches import MEAN, STD
from tests.pretend_gpu.cuda import pretend_gpu
from tests.pretend_gpu.tensors import raw

GIB = 2**30


def room(free: int, capacity: int = 80 * GIB) -> Any:
    return patch("torch.cuda.mem_get_info", lambda device=None: (free, capacity))


def test_a_move_to_a_gpu_is_not_waited_for() -> None:
    numbers = torch.arange(100)
    with pretend_gpu() as did:
        moved = moved_unwaited(numbers, torch.device("cuda"))
        assert moved.is_cuda
        assert torch.equal(raw(moved), numbers)
        assert not did.waits
        numbers.to("cuda")
        assert did.waits.total() == 1  # from pageable memory


def test_a_quarter_of_a_gpu_stays_free() -> None:
    cuda = torch.device("cuda", 0)
    with pretend_gpu(), room(30 * GIB):
        assert roomy(cuda, 9 * GIB) == cuda
        assert roomy(cuda, 11 * GIB) == torch.device("cpu")
    assert roomy(torch.device("cpu"), 10**15) == torch.device("cpu")


def test_what_has_no_room_is_told_in_one_line_with_both_sizes() -> None:
    check_room(10**15, torch.device("cpu"))
    with pretend_gpu(), room(30 * GIB):
        check_room(30 * GIB, torch.device("cuda", 0))
        with pytest.raises(ValueError, match=f"take {show_bytes(31 * GIB)}, got {show_bytes(30 * GIB)} free"):
            check_room(31 * GIB, torch.device("cuda", 0))


def test_a_data_set_larger_than_the_gpu_names_data_root() -> None:
    from flare_dist.data.batches import BatchSource

    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(2**20, 3, 224, 224)  # 158 GB, in one byte
    examples = Examples(images, torch.zeros(1, dtype=torch.int64).expand(2**20))
    with (
        pretend_gpu(),
        pytest.raises(ValueError, match=r"^data\.root: the examples, .* take 158 GB, got 64\.4 GB free"),
    ):
        BatchSource(examples, MEAN, STD, "cuda")
