"""Clients trained as one batch are what they are one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from flare_dist.clients import batchable
from flare_dist.clients.batched import BatchedTrainer
from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.clients.stacked import train_stacked
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.server.config import ServerConfig
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.batches import resident
from tests.helpers.engines import OPTIMIZER_SETTINGS
from tests.helpers.rounds import DENSE, play
from tests.ranks import run_ranks, single

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
SIZES = [1, 9, 8, 30, 17, 30]  # of the clients; batches of 8: one example, batch_size + 1, just a batch, ...
DATA = DataConfig(
    name="synthetic", synthetic=SyntheticConfig(examples=sum(SIZES), test_examples=20, shape=(1, 12, 12), classes=4)
)
BASE = Config(seed=3, data=DATA, clients=ClientsConfig(num=len(SIZES), batch_size=8, lr=0.05, together="always"))


def trainers(config: Config) -> tuple[LocalTrainer, BatchedTrainer, list[Tensor]]:
    """Both trainers over the same model, and the examples of clients of the sizes above."""
    torch.set_num_threads(1)
    fed = set_up_federation(config, World())
    assert fed.clients.batched is not None
    return fed.clients.trainer, fed.clients.batched, list(torch.arange(sum(SIZES)).split(SIZES))


def one_after_another(used: LocalTrainer, parts: list[Tensor], round_: int = 2) -> list[ClientResult]:
    start = used.model.parameters.clone(), used.model.buffers.clone()
    trained = (used.train(client, round_, parts[client], *start, {}) for client in range(len(parts)))
    found = [replace(result, model_delta=result.model_delta.clone()) for result in trained]
    used.model.load(*start)
    return found


def as_one_batch(used: BatchedTrainer, parts: list[Tensor], round_: int = 2) -> list[ClientResult]:
    start = used.trainer.model.parameters.clone(), used.trainer.model.buffers.clone()
    groups = used.groups(range(len(parts)), parts)
    found = [result for group in groups for result in used.train(group, round_, parts, *start)]
    return sorted(found, key=lambda result: result.client)


def assert_alike(ones: list[ClientResult], others: list[ClientResult], tolerance: float) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        assert (one.client, one.num_examples) == (other.client, other.num_examples)
        assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance)
        torch.testing.assert_close(one.model_delta, other.model_delta, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(one.buffer_delta, other.buffer_delta, rtol=0, atol=0)
        assert other.model_delta.any()


def _with_large_eps(make: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    def made(*settings: Any) -> torch.optim.Optimizer:
        optimizer = make(*settings)
        for group in optimizer.param_groups:
            group["eps"] = 1.0
        return optimizer

    return made


@pytest.mark.parametrize("model", ["2nn", "cnn"])
@pytest.mark.parametrize("settings", OPTIMIZER_SETTINGS)
def test_a_step_agrees_with_one_after_another(model: str, settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of clients with 1 to 8 examples, within 1e-5 in float32.

    Adam divides a gradient by its own size, which makes the rounding of a tiny one as large as a step. With eps = 1
    nothing is blown up; with its own eps the loop in double precision above is compared.
    """
    for name in ("adam", "adamw"):
        monkeypatch.setitem(OPTIMIZERS, name, _with_large_eps(OPTIMIZERS[name]))
    clients = replace(BASE.clients, local_steps=1, **OPTIMIZER_SETTINGS[settings])
    used, batched, parts = trainers(replace(BASE, model=ModelConfig(model), clients=clients))
    assert_alike(one_after_another(used, parts), as_one_batch(batched, parts), 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"local_epochs": 3, "momentum": 0.9},
        {"local_steps": 7, "lr_schedule": "step:0.5@2", "gradient_clipping": 0.1},
        {"batch_size": 100, "local_epochs": 2},  # more than anybody has
        {"batch_size": 1},
    ],
)
def test_a_round_of_unequal_clients_agrees_with_one_after_another(changes: dict[str, Any]) -> None:
    """The same examples in the same batches, moved alike, at the same rates; groups change nothing."""
    config = replace(BASE, data=replace(DATA, augment="crop_flip"), clients=replace(BASE.clients, **changes))
    used, batched, parts = trainers(config)
    expected = one_after_another(used, parts)
    assert_alike(expected, as_one_batch(batched, parts), 1e-4)
    assert_alike(expected, as_one_batch(BatchedTrainer(used, 2, CLASSIFICATION), parts), 1e-4)
    assert not torch.allclose(expected[3].model_delta, as_one_batch(batched, parts, round_=3)[3].model_delta)


def test_a_client_that_is_not_finite_harms_nobody_else() -> None:
    used, batched, parts = trainers(BASE)
    expected = as_one_batch(batched, parts)
    source = resident(used.source)
    source.inputs = source.inputs.float()
    source.inputs[parts[3]] = float("nan")
    found = as_one_batch(batched, parts)
    assert [result.is_finite for result in found] == [client != 3 for client in range(len(SIZES))]
    kept = [client for client in range(len(SIZES)) if client != 3]
    assert_alike([expected[client] for client in kept], [found[client] for client in kept], 1e-6)


def test_no_batch_makes_the_host_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group reads from the device once, its losses, however many steps it takes."""
    read: list[str] = []

    def watched(name: str) -> Callable[[Tensor], Any]:
        plain = getattr(Tensor, name)

        def call(self: Tensor) -> Any:
            read.append(name)
            return plain(self)

        return call

    for name in ("item", "tolist", "__bool__", "cpu"):
        monkeypatch.setattr(Tensor, name, watched(name))
    counts = {}
    for epochs in (1, 4):
        _, batched, parts = trainers(replace(BASE, clients=replace(BASE.clients, local_epochs=epochs, momentum=0.9)))
        read.clear()
        as_one_batch(batched, parts)
        counts[epochs] = list(read)
        AcceleratorState._reset_state(True)
    assert counts[1] == counts[4] == ["tolist"]


def test_groups_are_of_clients_with_about_as_many_steps() -> None:
    _, batched, parts = trainers(BASE)
    assert batched.most == batchable.MOST_ON_CPU
    assert BatchedTrainer(batched.trainer, 4, CLASSIFICATION).groups(range(6), parts) == [[3, 5, 4, 1], [0, 2]]
    assert batched.groups([], parts) == []


@pytest.mark.parametrize("aggregator", ["mean", "fednova"])
def test_ranks_that_train_their_clients_as_one_batch_agree(aggregator: str) -> None:
    config = replace(DENSE, server=ServerConfig(aggregator=aggregator))
    batched = replace(config, clients=replace(config.clients, together="always"))
    expected, _, _, rows = single(play, config)
    ends = [single(play, batched), *run_ranks(play, 2, batched)]
    for parameters, _, _, reports in ends:
        torch.testing.assert_close(parameters, expected, rtol=1e-4, atol=1e-6)
        for row, report in zip(rows, reports):
            assert report["train_loss"] == pytest.approx(row["train_loss"], rel=1e-4)
            assert report["uplink_bytes"] == row["uplink_bytes"]
            assert "slowest_client_seconds" in row
            assert "slowest_client_seconds" not in report
    assert torch.equal(ends[1][0], ends[2][0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", ["2nn", "cnn"])
def test_on_a_gpu_a_step_agrees_with_one_after_another(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which rounds either way to ten bits
    clients = replace(BASE.clients, local_steps=1, momentum=0.9)
    config = replace(BASE, model=ModelConfig(model), clients=clients)
    fed = set_up_federation(config, World(device=torch.device("cuda", 0)))
    assert fed.clients.batched is not None
    parts = list(torch.arange(sum(SIZES)).split(SIZES))
    assert_alike(one_after_another(fed.clients.trainer, parts), as_one_batch(fed.clients.batched, parts), 1e-5)
    names = dict(fed.clients.trainer.model.layout.views(fed.clients.trainer.model.parameters))
    steps = fed.clients.batched.draw(sorted(range(len(parts)), key=lambda client: -SIZES[client]), 1, parts)
    torch.cuda.set_sync_debug_mode("error")  # where the host would wait for the device
    try:
        train_stacked(
            fed.clients.trainer.model.module,
            names,
            len(parts),
            steps,
            lambda rows: torch.optim.SGD(rows, lr=0.1),
            CLASSIFICATION,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert federated_round(1, fed)["clients"] == len(SIZES)
