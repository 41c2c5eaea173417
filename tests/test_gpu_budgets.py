"""What a step of the hook may launch, wait for and hold on a GPU; the GPU is pretended (pretend_gpu/).

The launches are those that were counted when the hook was last made faster; a change may add 3 %.
"""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torchvision
from torch import Tensor

from flare_dist.hook import ddp, memory
from tests.pretend_gpu.ddp import CAP, FIRST
from tests.pretend_gpu.hook_steps import Shapes, hook_steps

MORE = 1.03
FEW = 1.1  # on 64 ranks, of what 8 take
SMALLER = 16  # the rows of tensors and the bytes of buckets, which changes neither launches nor shares of memory
BUCKETS: dict[str, Any] = {"cap": CAP / SMALLER, "first": FIRST / SMALLER}


def network(name: str) -> Shapes:
    with torch.device("meta"):
        return [tuple(p.shape) for p in torchvision.models.get_model(name, weights=None).parameters()]


def smaller(shapes: Shapes) -> Shapes:
    return [(math.ceil(rows / SMALLER), *rest) for rows, *rest in shapes]


RESNET18 = network("resnet18")
SETTINGS: dict[str, tuple[dict[str, Any], int]] = {  # launches of one step of ResNet-18 on 8 ranks
    "density 0.01": ({}, 128),
    "preconditioner": ({"preconditioner": "adam"}, 164),
    "bf16 parameters": ({"dtype": torch.bfloat16}, 91),
    "fp16 with a loss scale": ({"dtype": torch.float16, "scaled": True}, 99),
    "clipped": ({"clip_norm": 0.5}, 140),
    "dgc": ({"error_feedback": "dgc"}, 170),
    "int8": ({"value_codec": "int8"}, 245),
    "random": ({"sparsifier": "randk"}, 113),
    "blocks": ({"scope": "block"}, 128),
    "dense": ({"density": 1.0}, 3),
    "compiled": ({"compiled": True}, 128),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_waits_for_nothing_and_launches_no_more_than_it_did(name: str) -> None:
    settings, launches = SETTINGS[name]
    found = hook_steps(smaller(RESNET18), 8, steps=2, **BUCKETS, **settings)
    assert not found.waits
    assert not found.hazards
    assert found.launches <= MORE * launches
    assert found.held_by_others <= 2 * found.bucket_nbytes


def test_a_larger_network_takes_more_buckets_and_not_more_for_each_tensor() -> None:
    """ResNet-50 has 161 tensors in 5 buckets, and ViT-B/16 152 in 14."""
    for name, launches in (("resnet50", 210), ("vit_b_16", 579)):
        found = hook_steps(smaller(network(name)), 8, steps=2, **BUCKETS)
        assert found.launches <= MORE * launches
        assert found.held_by_others <= 2 * found.bucket_nbytes
        assert not found.waits


def test_a_network_of_its_real_size_takes_as_many() -> None:
    found, less = hook_steps(RESNET18, 8), hook_steps(smaller(RESNET18), 8, **BUCKETS)
    assert (found.buckets, found.launches) == (less.buckets, less.launches)
    shares = [each.held_by_others / each.bucket_nbytes for each in (found, less)]
    assert shares[0] == pytest.approx(shares[1], rel=0.1)


def test_more_ranks_take_no_more_launches() -> None:
    shapes = smaller(RESNET18[-20:])
    eight, many = (hook_steps(shapes, world, **BUCKETS).launches for world in (8, 64))
    assert many <= FEW * eight


def test_64_ranks_hold_two_buckets_and_take_no_more_launches() -> None:
    found = hook_steps(RESNET18, 64, steps=2)
    assert found.held_by_others <= 2 * found.bucket_nbytes
    assert found.launches <= FEW * 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cap", [2**16, CAP])
def test_eight_ranks_take_two_buckets_whatever_their_size_and_precision(cap: int, dtype: torch.dtype) -> None:
    """Of float32, in which the means of other gradients are made."""
    found = hook_steps(RESNET18[-20:-8], 8, steps=2, cap=cap, dtype=dtype)
    assert 0 < found.held_by_others <= 2 * found.bucket_nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("room", [2**18, 2**23])
def test_many_ranks_take_two_buckets_or_the_room_beside_the_mean(room: int, dtype: torch.dtype) -> None:
    """They are decoded at once while that takes no more, for else they would take more launches."""
    with patch.object(memory, "_ROOM", room):
        found = hook_steps([(500, 500)] * 2, 64, steps=1, dtype=dtype)
    mean = 0 if dtype == torch.float32 else found.bucket_nbytes
    assert found.held_by_others <= max(2 * found.bucket_nbytes, room + mean)
    assert (found.held_by_others > 2 * found.bucket_nbytes) == (room == 2**23)


def test_many_entries_are_decoded_in_the_room_that_there_is() -> None:
    """All ranks at once where that takes little, and otherwise some of them after the others."""
    shapes = [(1000, 500)]
    free = hook_steps(shapes, 16, steps=1, density=0.2)
    with patch.object(memory, "_ROOM", 1):
        found = hook_steps(shapes, 16, steps=1, density=0.2)
    assert found.held_by_others <= 2 * found.bucket_nbytes < free.held_by_others


def test_fourteen_steps_hold_what_two_do() -> None:
    shapes = RESNET18[:-35]
    two, many = (hook_steps(shapes, 8, steps=steps).held_by_others for steps in (2, 14))
    assert many == two > 0


def test_somebody_who_adds_an_item_breaks_the_budget() -> None:
    real = ddp.not_finite

    def asks(vector: Tensor) -> Tensor:
        broken = real(vector)
        return torch.zeros_like(broken) if broken.item() == 0 else broken

    with patch.object(ddp, "not_finite", asks):
        assert hook_steps(RESNET18[:5], 2, steps=1).waits


def test_somebody_who_looks_at_tensors_one_by_one_breaks_the_budget() -> None:
    real = ddp.BucketMemory.largest_of_tensors

    def one_by_one(self: Any, gradient: Tensor) -> Tensor:
        for _, own in self.layout.views(gradient):
            own.count_nonzero()
        return real(self, gradient)

    with patch.object(ddp.BucketMemory, "largest_of_tensors", one_by_one):
        assert hook_steps(smaller(RESNET18), 8, steps=1, **BUCKETS).launches > MORE * 128
