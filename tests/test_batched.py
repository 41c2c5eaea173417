"""Clients trained as one batch are what they are one after another; where they cannot be, the reason is told."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from flare_dist.clients import batchable
from flare_dist.clients.batched import BatchedTrainer, Step, train_stacked
from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.engines.config import EngineConfig
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.setup import set_up_federation
from flare_dist.rounds.together import settle_together, why_not_together
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training.config import SparseTrainingConfig
from tests import test_rounds
from tests.ranks import run_ranks, single
from tests.test_trainer import results, start, tiny

SIZES = [1, 9, 8, 30, 17, 30]  # of the clients; batches of 8: one example, batch_size + 1, just a batch, ...
DATA = DataConfig(
    name="synthetic", synthetic=SyntheticConfig(examples=sum(SIZES), test_examples=20, shape=(1, 12, 12), classes=4)
)
BASE = Config(seed=3, data=DATA, clients=ClientsConfig(num=len(SIZES), batch_size=8, lr=0.05, together="always"))
OPTIMIZER_SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its device in a singleton of the process."""
    yield
    AcceleratorState._reset_state(True)


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


class Net(nn.Module):
    """A convolution, a buffer that is constant, a parameter that nobody uses and one used twice."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = norm or nn.GroupNorm(1, 3)
        self.first, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.idle = nn.Parameter(torch.ones(2))
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).flatten(1)
        return self.head(self.first(torch.tanh(self.first(x)))) * self.scale


@pytest.mark.parametrize("clipping", [None, 0.05])
@pytest.mark.parametrize("settings", OPTIMIZER_SETTINGS)
def test_in_double_precision_a_round_is_the_ordinary_loop_of_each_client(settings: str, clipping: float | None) -> None:
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = Net().double()
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    clients = ClientsConfig(**{"lr": 0.1} | OPTIMIZER_SETTINGS[settings])

    def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return OPTIMIZERS[clients.optimizer](parameters, clients.lr, clients.momentum, clients.weight_decay)

    lengths = [[5, 5, 5, 5, 5, 2], [5, 5, 5, 5, 1], [5, 5, 5], [5, 3], [4], [1]]  # of each client's batches
    batches = [
        [(torch.randn(n, 1, 4, 4, generator=rng).double(), torch.randint(4, (n,), generator=rng)) for n in of_client]
        for of_client in lengths
    ]
    steps = []
    for number in range(len(lengths[0])):
        taken = [own[number] for own in batches if number < len(own)]
        filled = [[*range(len(labels)), *[0] * (5 - len(labels))] for _, labels in taken]
        steps.append(
            Step(
                torch.stack([inputs[at] for (inputs, _), at in zip(taken, filled)]),
                torch.stack([labels[at] for (_, labels), at in zip(taken, filled)]),
                torch.tensor([len(labels) for _, labels in taken]),
            )
        )
    ends, loss_sums, _ = train_stacked(net, initial, len(lengths), steps, make_optimizer, clipping)
    assert all(torch.equal(value, initial[name]) for name, value in net.named_parameters())
    for row, own in enumerate(batches):
        model, loss_sum = copy.deepcopy(net), 0.0
        for value in model.parameters():
            value.grad = torch.zeros_like(value)
        optimizer = make_optimizer(list(model.parameters()))
        for inputs, labels in own:
            optimizer.zero_grad(set_to_none=False)
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            if clipping is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clipping)
            optimizer.step()
            loss_sum += loss.item() * len(labels)
        for value, end in zip(model.parameters(), ends):
            torch.testing.assert_close(end[row], value.detach(), rtol=1e-9, atol=1e-9)
        assert loss_sums[row].item() == pytest.approx(loss_sum, rel=1e-9)


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
def test_rounds_of_unequal_clients_agree(changes: dict[str, Any]) -> None:
    """The same examples in the same batches, moved alike, at the same rates; groups change nothing."""
    config = replace(BASE, data=replace(DATA, augment="crop_flip"), clients=replace(BASE.clients, **changes))
    used, batched, parts = trainers(config)
    expected = one_after_another(used, parts)
    assert_alike(expected, as_one_batch(batched, parts), 1e-4)
    assert_alike(expected, as_one_batch(BatchedTrainer(used, 2), parts), 1e-4)
    assert not torch.allclose(expected[3].model_delta, as_one_batch(batched, parts, round_=3)[3].model_delta)


def test_texts_agree() -> None:
    """Every place of a text has a label."""
    torch.manual_seed(0)

    class Speaker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embedding(x))).movedim(-1, 1)

    model = Speaker()
    assert batchable.why_not_batchable(model, torch.zeros(1, 5, dtype=torch.int64)) is None
    inputs, labels = torch.randint(4, (2, 3, 5)), torch.randint(4, (2, 3, 5))
    initial = {name: value.detach().clone() for name, value in model.named_parameters()}
    step = Step(inputs, labels, torch.tensor([3, 3]))
    ends, loss_sums, _ = train_stacked(model, initial, 2, [step], lambda rows: torch.optim.SGD(rows, lr=0.1))
    for row in range(2):
        single = copy.deepcopy(model)
        loss = F.cross_entropy(single(inputs[row]), labels[row])
        loss.backward()
        assert loss_sums[row].item() == pytest.approx(3 * loss.item(), rel=1e-5)
        for value, end in zip(single.parameters(), ends):
            assert value.grad is not None
            torch.testing.assert_close(end[row], (value - 0.1 * value.grad).detach())


def test_a_client_that_is_not_finite_harms_nobody_else() -> None:
    used, batched, parts = trainers(BASE)
    expected = as_one_batch(batched, parts)
    used.source.inputs = used.source.inputs.float()
    used.source.inputs[parts[3]] = float("nan")
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
    assert BatchedTrainer(batched.trainer, 4).groups(range(6), parts) == [[3, 5, 4, 1], [0, 2]]
    assert batched.groups([], parts) == []


@pytest.mark.parametrize(
    ("free", "most"), [(0, 1), (4 * 2**30, 256), (4 * 4 * (6 * 250 + 4 * 10 * 300) * 50 + 4, 50)], ids=str
)
def test_as_many_clients_as_a_gpu_has_room_for(free: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of what is free: six vectors of the model's size, and what the batch keeps four times over."""
    model = nn.Sequential(nn.Linear(24, 10), nn.Identity())
    assert sum(parameter.numel() for parameter in model.parameters()) == 250
    monkeypatch.setattr(batchable, "kept_for_backward", lambda model, blank: 300)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert batchable.most_clients(model, torch.zeros(1, 24), 10, torch.device("cuda", 0)) == most
    assert batchable.most_clients(model, torch.zeros(1, 24), 10, torch.device("cpu")) == batchable.MOST_ON_CPU


def test_what_a_backward_pass_needs_is_counted() -> None:
    model = nn.Sequential(nn.Linear(24, 10), nn.Tanh(), nn.Linear(10, 3))
    assert batchable.kept_for_backward(model, torch.zeros(1, 24)) == 24 + 10 + 10 + 30  # inputs, tanh twice, weights


class Branching(nn.Module):
    """What it does depends on the values that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.layer(x)
        return scores if scores.sum() > 0 else -scores


class Acting(nn.Module):
    """A linear layer, and something else."""

    def __init__(self, act: Callable[[Acting, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(4, 4), act
        self.register_buffer("calls", torch.zeros(()))
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, self.layer(x))


def count(model: Acting, x: Tensor) -> Tensor:
    model.calls += 1
    return x


def replace_count(model: Acting, x: Tensor) -> Tensor:
    model.calls = model.calls + x.detach().sum()
    return x


class HiddenMean(nn.Module):
    """What it makes of the other examples counts for nothing yet, as in a residual branch that begins with zero."""

    def __init__(self, first: nn.Module, gate: float) -> None:
        super().__init__()
        self.first, self.gate = first, nn.Parameter(torch.full((4,), gate))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        return hidden + self.gate * hidden.mean(0)


def test_dependence_that_initial_weights_or_equal_texts_hide_is_found() -> None:
    text = torch.zeros(1, 5, dtype=torch.int64)
    for model, blank in (
        (HiddenMean(nn.Linear(4, 4), 0.0), torch.zeros(1, 4)),
        (HiddenMean(nn.Embedding(9, 4), -1.0), text),
    ):
        found = batchable.why_not_batchable(model, blank)
        assert found == "the model's examples are not independent of the others in their batch"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.GroupNorm(2, 4)), None),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "the model has BatchNorm, "),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), "the model has dropout, "),
        (nn.GRU(4, 4), "the model has recurrent layers, "),
        (Branching(), "torch.func.vmap does not take the model (vmap: "),
        (Acting(lambda model, x: x), None),
        (Acting(lambda model, x: F.dropout(x, 0.5)), "torch.func.vmap does not take the model (vmap: called random"),
        (Acting(lambda model, x: x * random.random()), "the model draws from numpy or random"),
        (Acting(lambda model, x: x if np.random.random() < 2 else -x), "the model draws from numpy or random"),
        (Acting(lambda model, x: x - x.mean(0)), "the model's examples are not independent"),
        (Acting(count), "the model changes its buffers"),
        (Acting(replace_count), "the model changes its buffers"),
    ],
)
def test_models_fall_back_with_the_reason(model: nn.Module, reason: str | None) -> None:
    before = copy.deepcopy(model.state_dict())
    found = batchable.why_not_batchable(model, torch.zeros(1, 4))
    assert found == reason or (reason is not None and found is not None and found.startswith(reason))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"mode": "gradient"}, "only federated training has several clients"),
        ({"engine": EngineConfig("deepspeed")}, "an engine of DeepSpeed's trains one client at a time"),
        ({"engine": EngineConfig(mixed_precision="bf16")}, "mixed precision is for one client at a time"),
        ({"engine": EngineConfig(gradient_accumulation_steps=2)}, "gradients are accumulated for one client at a time"),
        ({"clients": ClientsConfig(objective="fedprox")}, "an objective is for one client at a time"),
        ({"clients": ClientsConfig(step_ahead=0.5)}, "step_ahead starts each client from another model"),
        ({"sparse_training": SparseTrainingConfig("pdst", 0.5)}, "masks are those of one client at a time"),
    ],
)
def test_settings_fall_back_with_the_reason(
    changes: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("flare_dist"), "propagate", True)
    caplog.set_level("INFO")
    config, model, blank = replace(Config(), **changes), nn.Linear(4, 4), torch.zeros(1, 4)
    found = why_not_together(config, model, blank)
    assert found == reason or (reason is not None and found is not None and found.startswith(reason))
    settled = settle_together(config, model, blank, "cuda")
    assert settled.clients.together == ("never" if reason else "always")
    if config.mode == "federated":
        assert (f"one after another: {reason}" if reason else "as one batch") in caplog.text
    if reason:
        with pytest.raises(ValueError, match=rf"^clients\.together: {reason}, got always with "):
            replace(config, clients=replace(config.clients, together="always"))


def test_auto_is_for_small_models_on_gpus() -> None:
    def settled(together: str, model: nn.Module, device: str) -> str:
        config = replace(Config(), clients=ClientsConfig(together=together))
        return settle_together(config, model, torch.zeros(1, 1024), device).clients.together

    small, large = nn.Linear(1024, 8), nn.Linear(1024, 1025)
    assert settled("auto", small, "cuda") == "always"
    assert settled("auto", large, "cuda") == settled("auto", small, "cpu") == settled("never", small, "cuda") == "never"
    assert settled("always", small, "cpu") == settled("always", large, "cuda") == "always"
    with pytest.raises(ValueError, match=r"^clients\.together: must be auto, always or never, got 'yes'"):
        ClientsConfig(together="yes")


def together(config: Config, value: str) -> Config:
    return replace(config, clients=replace(config.clients, together=value, local_epochs=2, momentum=0.9))


def test_a_run_says_how_it_was_trained_and_is_the_same(tmp_path: Path) -> None:
    rows = {}
    for value, recorded in [("auto", "never"), ("never", "never"), ("always", "always")]:
        start(together(tiny(tmp_path / value), value))
        settled = yaml.safe_load((tmp_path / value / "config.yaml").read_text())
        assert settled["clients"]["together"] == recorded
        rows[value] = results(tmp_path / value)[1]
    assert rows["auto"] == rows["never"]
    for one, other in zip(rows["never"], rows["always"]):
        assert one.keys() == other.keys()
        for key, value in one.items():
            near = key.endswith(("loss", "accuracy"))
            assert other[key] == (pytest.approx(value, rel=1e-3, abs=1e-3) if near else value), key


@pytest.mark.parametrize("value", ["auto", "always"])
def test_a_killed_run_goes_on_as_it_began(tmp_path: Path, value: str) -> None:
    start(together(tiny(tmp_path / "straight"), value))
    start(together(tiny(tmp_path / "killed"), value), kill_in_round=5)
    start(together(tiny(tmp_path / "killed"), value))
    assert results(tmp_path / "killed")[1] == results(tmp_path / "straight")[1]
    path = tmp_path / "killed" / "config.yaml"
    if value == "auto":  # a run of a version that knew only one after another
        path.write_text(path.read_text().replace("  together: never\n", ""))
        start(together(tiny(tmp_path / "killed"), value))
        start(together(tiny(tmp_path / "killed"), "never"))
    with pytest.raises(ValueError, match=r"^clients\.together: .* holds a run with another configuration"):
        start(together(tiny(tmp_path / "killed"), "always" if value == "auto" else "never"))


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", model=ModelConfig("tests.test_rounds:norm_net", norm="batch"))
    with pytest.raises(ValueError, match=r"^clients\.together: always is not possible: the model has BatchNorm, .*$"):
        start(together(config, "always"))
    assert not (tmp_path / "run").exists()
    start(together(config, "auto"))


@pytest.mark.parametrize("aggregator", ["mean", "fednova"])
def test_ranks_that_train_their_clients_as_one_batch_agree(aggregator: str) -> None:
    config = replace(test_rounds.DENSE, server=ServerConfig(aggregator=aggregator))
    batched = replace(config, clients=replace(config.clients, together="always"))
    expected, _, _, rows = single(test_rounds.play, config)
    ends = [single(test_rounds.play, batched), *run_ranks(test_rounds.play, 2, batched)]
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
def test_on_a_gpu_a_step_agrees(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
            fed.clients.trainer.model.module, names, len(parts), steps, lambda rows: torch.optim.SGD(rows, lr=0.1)
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert federated_round(1, fed)["clients"] == len(SIZES)
