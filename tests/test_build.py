"""DeepSpeed is told by the environment which GPU is this rank's."""

from __future__ import annotations

import os
from types import SimpleNamespace

import deepspeed
import pytest
import torch

from flare_dist.comm.world import World
from flare_dist.engines.build import _prepare_deepspeed
from flare_dist.engines.deepspeed_engine import _compile_nothing


@pytest.mark.parametrize(
    ("device", "told", "expected"),
    [
        ("cuda:0", {"LOCAL_RANK": "3"}, "0"),  # a task of SLURM that sees one GPU
        ("cuda:0", {}, "0"),  # a pod of Kubernetes
        ("cuda:5", {"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}, "5"),  # torchrun
        ("cuda:1", {"LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}, "1"),  # MPI's ranks that share two GPUs
        ("cpu", {"LOCAL_RANK": "3"}, "3"),
    ],
)
def test_the_local_rank_that_deepspeed_reads_is_the_number_of_the_gpu(
    device: str, told: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*told, "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "")  # to be given back
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    _prepare_deepspeed(World(3, 8, torch.device(device)))
    assert os.environ["LOCAL_RANK"] == expected
    assert os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", expected) == expected  # or DeepSpeed refuses
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("3", "8")


def test_the_operators_of_deepspeed_are_looked_at_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed finds out what it can compile when it is first asked: a GPU without a CUDA toolkit makes it raise."""
    monkeypatch.setattr(deepspeed, "ops", SimpleNamespace())  # which has no list of operators
    _compile_nothing(torch.device("cuda", 0))
    deepspeed.ops.__compatible_ops__ = {}
    _compile_nothing(torch.device("cpu"))
    assert deepspeed.ops.__compatible_ops__ == {"deepspeed_shm_comm": False}
