"""Clients on several ranks: hosts of S shards are hosts of one to rounding, and checkpoints move between S."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flare_dist.algorithms.flare import FlareConfig
from flare_dist.comm.host import Host
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.engines.config import EngineConfig
from flare_dist.server.config import ServerConfig
from tests.helpers.hosts import Played, play_on, with_clients
from tests.helpers.rounds import DENSE, SPARSE
from tests.helpers.runs import assert_same_run, start, tiny
from tests.ranks import run_ranks, single

ROWS = dataclasses.replace(SPARSE, compression=CompressionConfig(density=0.05, scope="row"))


CONFIGS = {
    "dense": DENSE,
    "rows": ROWS,
    "clipped": with_clients(ROWS, gradient_clipping=0.5),
    "flare": with_clients(ROWS, objective="flare", flare=FlareConfig(tau=0.05, percentile=70.0)),
    "scaffold": with_clients(DENSE, objective="scaffold", momentum=0.0),
    "server with momentum": dataclasses.replace(ROWS, server=ServerConfig(momentum=0.5)),
    "randk": dataclasses.replace(ROWS, compression=CompressionConfig(density=0.3, sparsifier="randk", scope="row")),
}
TO_ROUNDING = [name for name in CONFIGS if name != "randk"]  # which draws for each shard anew
SOME = ["rows", "flare"]  # on a host of four ranks


def play_all(world: World) -> Played:
    """The global model and the rows of every configuration; of some on hosts of more than two ranks."""
    shards = world.host.shards
    configs = CONFIGS if shards <= 2 else {name: CONFIGS[name] for name in SOME}
    return play_on(world, configs, EngineConfig(name="fsdp", shards=shards) if shards > 1 else EngineConfig())


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    """What one rank computes by itself."""
    found: dict[str, Any] = single(play_all)
    return found


@pytest.mark.parametrize(("hosts", "shards"), [(2, 2), (1, 4)])
def test_hosts_of_several_shards_are_those_of_one_to_rounding(one: dict[str, Any], hosts: int, shards: int) -> None:
    for played in run_ranks(play_all, hosts * shards, shards=shards):
        for name in TO_ROUNDING if shards <= 2 else SOME:
            model, rows = played[name]
            expected, expected_rows = one[name]
            for key, weight in model.items():
                torch.testing.assert_close(weight, expected[key], rtol=0, atol=2e-6, msg=f"{name}: {key}")
            assert [row["kept"] for row in rows] == [row["kept"] for row in expected_rows]
            assert [row["total"] for row in rows] == [row["total"] for row in expected_rows]
            losses = [row["train_loss"] for row in rows]
            assert losses == pytest.approx([row["train_loss"] for row in expected_rows], abs=1e-6)


def sharded(directory: Path, shards: int, **changes: Any) -> Config:
    """The tiny run on hosts of so many ranks; of one in Accelerate."""
    compression = CompressionConfig(density=0.05, scope="row", downlink="changed")
    engine = EngineConfig(name="fsdp", shards=shards) if shards > 1 else EngineConfig()
    return tiny(directory, compression=compression, engine=engine, **changes)


def test_a_killed_run_of_two_shards_goes_on_bitwise_and_on_other_hosts_to_rounding(tmp_path: Path) -> None:
    start(sharded(tmp_path / "straight", 2), 2)
    start(sharded(tmp_path / "killed", 2), 2, kill_in_round=5)
    start(sharded(tmp_path / "killed", 2), 2)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    expected = load_file(tmp_path / "straight" / "model.safetensors")
    start(sharded(tmp_path / "alone", 1), 1, kill_in_round=5)
    for before, shards, ranks in (("killed", 1, 1), ("killed", 4, 4), ("alone", 2, 2)):
        place = tmp_path / f"{before} {shards}"
        source = tmp_path / f"source of {place.name}"
        shutil.copytree(tmp_path / before, source)
        if before == "killed":  # as it was after round 4
            shutil.rmtree(source / "checkpoints" / "round-00000006")
        start(sharded(place, shards, checkpoint=CheckpointConfig(every=2, resume=str(source))), ranks)
        model = load_file(place / "model.safetensors")
        for name, weight in model.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-6, msg=f"{place.name}: {name}")


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        ({"shards": 2}, {}, "engine.shards: only FSDP2 and DeepSpeed's ZeRO divide a client's model"),
        ({"name": "fsdp"}, {"mode": "centralised"}, "engine.name: only federated clients have hosts"),
        ({"name": "fsdp"}, {}, "engine.name: divides a client's model among the ranks of a host, got fsdp with"),
        ({"name": "fsdp", "shards": 3}, {}, "engine.shards: clients.batch_size must be a multiple of it, got 3"),
        (
            {"name": "fsdp", "shards": 2, "gradient_accumulation_steps": 2},
            {},
            "the ranks of a host divide each batch already",
        ),
    ],
)
def test_what_does_not_go_with_shards_is_refused(engine: dict[str, Any], changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(Path("unused"), engine=EngineConfig(**engine), **changes)


def test_ranks_that_make_no_whole_hosts_are_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path, engine=EngineConfig(name="fsdp", shards=2))
    with pytest.raises(ValueError, match=r"^engine\.shards: the number of ranks must be a multiple of it, got 2"):
        start(config, 1)


def test_a_host_of_one_rank_has_everything() -> None:
    host = Host()
    vector = torch.arange(3.0)
    assert host.gather(vector) is vector
    assert host.sum_(vector) is vector
    assert host.sums([3]) == [3]
    assert host.all_true(True)
