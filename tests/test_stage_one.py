"""The first stage of FLASH: one number a layer is sent and reported, and clients that diverge are left out."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.stage_one import begin_masks
from flare_dist.sparse_training.consensus import Masks
from tests.helpers.batches import resident
from tests.helpers.masks import BASE, BUDGET, HETERO, QUIET, begin, config, play
from tests.helpers.sparse_runs import checkpointed
from tests.ranks import run_ranks


def test_stage_one_sends_one_number_for_each_layer_and_nothing_of_the_models() -> None:
    fed = set_up_federation(BASE, World())
    before = fed.server.parameters.detach().clone()
    row = begin_masks(fed, QUIET)
    assert isinstance(fed.masks, Masks)
    assert (row["clients"], row["uplink_bytes"]) == (2, 2 * 4 * 2)
    found = row["stage_one"]
    assert [len(layers) for layers in found["sensitivities"].values()] == [2, 2]
    assert sum(d * e.numel for d, e in zip(found["densities"], fed.masks.layers.whole)) == pytest.approx(BUDGET)
    assert list(row["layer_densities"].values()) == pytest.approx(found["densities"])
    assert torch.equal(fed.server.parameters.detach(), before * fed.masks.mask)


def test_stage_one_begins_with_nothing_remembered_for_the_objective() -> None:
    clients = dataclasses.replace(BASE.clients, objective="feddyn", weighting="uniform")
    reports = play(World(), dataclasses.replace(BASE, clients=clients, rounds=1))[3]
    assert [report["rejected_clients"] for report in reports] == [0, 0]


def _stage_one_wire(world: World) -> int:
    return int(begin_masks(set_up_federation(BASE, world), QUIET)["wire_bytes"])


def test_on_the_wire_of_stage_one_there_are_only_these_numbers() -> None:
    assert run_ranks(_stage_one_wire, 2) == [2 * 4 * 4, 2 * 4 * 4]  # an all-reduce of 2 clients x 2 layers


def test_a_sparse_run_may_begin_where_a_dense_one_ended(tmp_path: Path) -> None:
    dense = checkpointed(tmp_path / "dense", config(dataclasses.replace(BASE, rounds=1), method="dense"))
    sparse = checkpointed(tmp_path / "sparse", config(method="spdst", hetero=HETERO), resume=str(dense))
    rows = [json.loads(line) for line in (sparse / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["active_weights"] == BUDGET
    begun = rows[1]  # the dense run's last round, and stage 1 after it
    assert begun["stage_one"]["densities"] == pytest.approx(list(begun["layer_densities"].values()))
    before = json.loads((dense / "metrics.jsonl").read_text().splitlines()[1])
    assert begun["uplink_bytes"] == before["uplink_bytes"] + 2 * 4 * 2
    assert begun["clients"] == before["clients"]


def test_clients_that_diverge_in_stage_one_or_in_a_round_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = set_up_federation(BASE, World())
    inputs = resident(fed.clients.trainer.source).inputs.float()
    for client in range(10):
        inputs[fed.clients.partition[client]] = float("nan")
    resident(fed.clients.trainer.source).inputs = inputs
    with pytest.raises(DivergedError, match="stage 1: the losses or deltas of all its clients are not finite"):
        begin_masks(fed, QUIET)
    for method in ("nst", "jmwst"):
        used = config(method=method)
        fed = begin(World(), used)
        assert isinstance(fed.masks, Masks)
        cohort = single_cohort(used)
        inputs = resident(fed.clients.trainer.source).inputs.float()
        inputs[fed.clients.partition[cohort[0]]] = float("nan")
        resident(fed.clients.trainer.source).inputs = inputs
        report = federated_round(1, fed)
        assert report["rejected_clients"] == 1
        assert fed.server.parameters.isfinite().all()
        if method == "nst":
            assert cohort[0] not in fed.masks.state_dict()["personal"]  # it keeps the mask that it had
            assert set(cohort[1:]) <= set(fed.masks.state_dict()["personal"])


def single_cohort(used: Config) -> list[int]:
    from flare_dist.server.server import sample_cohort

    return sample_cohort(used.seed, 1, used.clients.count, used.clients.cohort_size)


def test_stage_one_tells_what_it_does_and_found(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    fed = set_up_federation(BASE, World())
    with caplog.at_level("INFO", logger="flare_dist"):
        begin_masks(fed, Console(width=120))
    assert re.search(r"layer densities: (1 client|[2-9] clients), (1 epoch|\d+ epochs) each", caplog.text)
    shown = capsys.readouterr().out
    assert "stage 1: density of each layer" in shown
    assert "3.weight" in shown
    assert "12,800" in shown
