"""The ranks of every launcher find their GPUs, and agree on one backend, whatever each of them sees."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import pytest
import torch
from torch.distributed import HashStore

from flare_dist.comm.launch import Launch
from flare_dist.comm.places import MixedDevicesError, Place, agree_on_backend, neighbours, share_places

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")

# How each launcher starts 2 nodes of 2 GPUs: the environment of rank r, and the GPUs of its node that it sees.
Environment = dict[str, str]


def torchrun(rank: int) -> Environment:
    return {"RANK": f"{rank}", "WORLD_SIZE": "4", "LOCAL_RANK": f"{rank % 2}", "LOCAL_WORLD_SIZE": "2"}


def accelerate(rank: int) -> Environment:
    return torchrun(rank) | {"ACCELERATE_MIXED_PRECISION": "no", "FORK_LAUNCHED": "0"}


def deepspeed(rank: int) -> Environment:
    names = {"RANK": f"{rank}", "WORLD_SIZE": "4", "LOCAL_RANK": f"{rank % 2}", "LOCAL_SIZE": "2"}
    return names | {"CROSS_RANK": f"{rank // 2}", "CROSS_SIZE": "2"}


def srun(rank: int) -> Environment:
    """Write what a script exports before srun: RANK=$SLURM_PROCID, WORLD_SIZE=$SLURM_NTASKS, LOCAL_RANK=..."""
    return {"RANK": f"{rank}", "WORLD_SIZE": "4", "LOCAL_RANK": f"{rank % 2}", "SLURM_LOCALID": f"{rank % 2}"}


def bare(rank: int) -> Environment:
    """Write what an operator of Kubernetes gives a pod, and scripts that know ranks alone."""
    return {"RANK": f"{rank}", "WORLD_SIZE": "4"}


def host(rank: int) -> str:
    return f"node-{rank // 2}"


def pod(rank: int) -> str:
    return f"pod-{rank}"


ALL = [0, 1]
CASES = {  # environment, host, GPUs that are seen, their number on each node -> backend, GPU and ranks of the host
    "torchrun": (torchrun, host, lambda rank: ALL, "nccl", [0, 1, 0, 1], 2),
    "accelerate": (accelerate, host, lambda rank: ALL, "nccl", [0, 1, 0, 1], 2),
    "deepspeed": (deepspeed, host, lambda rank: ALL, "nccl", [0, 1, 0, 1], 2),
    "srun": (srun, host, lambda rank: ALL, "nccl", [0, 1, 0, 1], 2),
    "srun, one GPU a task": (srun, host, lambda rank: [rank % 2], "nccl", [0, 1, 0, 1], 2),
    "srun without a local rank": (bare, host, lambda rank: ALL, "nccl", [0, 1, 0, 1], 2),
    "torchrun, one GPU a task": (torchrun, host, lambda rank: [rank % 2], "nccl", [0, 1, 0, 1], 2),
    "Kubernetes, pods of one GPU": (bare, pod, lambda rank: [rank % 2], "nccl", [0, 1, 0, 1], 1),
    "a node with a broken GPU": (torchrun, host, lambda rank: ALL if rank < 2 else [0], "gloo", [0, 1, 0, 0], 2),
    "all tasks see one GPU": (srun, host, lambda rank: [0], "gloo", [0, 0, 0, 0], 2),
}


@pytest.mark.parametrize("case", list(CASES))
def test_every_launcher_gives_each_rank_its_gpu_and_all_ranks_one_backend(
    case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment, host_of, seen, backend, gpus, local_size = CASES[case]
    on_cpu = [Place(host_of(rank), "", "cpu") for rank in range(4)]
    places = []
    for rank in range(4):
        for name in LAUNCHERS:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment(rank).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda rank=rank: len(seen(rank)))
        launch = Launch.from_environment()
        assert (launch.rank, launch.size) == (rank, 4)
        here = neighbours(on_cpu, rank)
        if not launch.local_size:  # as with_neighbours does
            local_rank = launch.local_rank if launch.launched else here.index(rank)
            launch = replace(launch, local_rank=local_rank, local_size=len(here))
        assert launch.local_size == local_size == len(here)
        index = launch.device("cuda").index
        assert index is not None
        gpu = seen(rank)[index]
        assert gpu == gpus[rank]
        places.append(Place(host_of(rank), "", "cuda", f"GPU-{rank // 2}-{gpu}"))
    with caplog.at_level(logging.WARNING):
        assert agree_on_backend(places) == backend
    assert ("share a GPU" in caplog.text) == (backend == "gloo")


@pytest.mark.parametrize(("tasks", "names", "warns"), [("8", {}, True), ("1", {}, False), ("8", torchrun(0), False)])
def test_tasks_of_srun_that_would_train_alone_are_warned_of(
    tasks: str, names: Environment, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_STEP_NUM_TASKS": tasks, **names}.items():
        monkeypatch.setenv(name, value)
    Launch.from_environment().warn_of_tasks_alone()
    assert ("WORLD_SIZE: not set, got 8 tasks of srun" in caplog.text) == warns


def test_a_shared_gpu_is_named_with_its_ranks_and_host(caplog: pytest.LogCaptureFixture) -> None:
    places = [Place("a", "", "cuda", "0"), Place("b", "", "cuda", "1"), Place("b", "", "cuda", "1")]
    assert agree_on_backend(places) == "gloo"
    assert "engine.device: ranks 1 and 2 of b share a GPU, so that all ranks exchange over gloo" in caplog.text


def test_mixed_kinds_of_devices_are_refused_with_the_names_of_the_hosts() -> None:
    places = [Place("big", "", "cuda", "0"), Place("big", "", "cuda", "1"), Place("broken", "", "cpu")]
    message = r"^engine\.device: .*, got cuda on big \(ranks 0 and 1\), cpu on broken \(rank 2\); "
    with pytest.raises(MixedDevicesError, match=message) as caught:
        agree_on_backend(places)
    assert "\n" not in str(caught.value)


def test_cpus_exchange_by_gloo() -> None:
    assert agree_on_backend([Place("a", "", "cpu"), Place("b", "", "cpu")]) == "gloo"


def test_hosts_of_one_name_are_told_apart_by_when_they_booted() -> None:
    places = [Place("localhost", "1", "cpu"), Place("localhost", "2", "cpu"), Place("localhost", "1", "cpu")]
    assert [neighbours(places, rank) for rank in range(3)] == [[0, 2], [1], [0, 2]]


def test_all_ranks_read_the_same_places_in_rank_order() -> None:
    store = HashStore()
    own = [Place(f"host-{rank}", "", "cuda", f"GPU-{rank}") for rank in range(3)]
    read: list[list[Place]] = [[]] * 3

    def share(rank: int) -> None:
        read[rank] = share_places(store, rank, 3, own[rank])

    threads = [threading.Thread(target=share, args=(rank,)) for rank in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert read == [own] * 3
