"""Each task in every part: engines, ranks, clients as one batch, pruning, and runs from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.cli import main
from flare_dist.clients.stacked import Step, train_stacked
from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.data.sources import SOURCES
from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.rounds.gradient import rank_weight
from flare_dist.sparse_training.criteria import gradient
from flare_dist.tasks.builtin import SEGMENTATION, TASKS
from flare_dist.tasks.losses import mean_loss
from flare_dist.tasks.task import Batch, Task
from tests.helpers.tasks import (
    CPU,
    EXAMPLES,
    batch_of,
    drawn,
    mean_gradient,
    model_of,
    moved,
    sgd,
    without_criterion,
)
from tests.ranks import run_ranks

Penalty = Callable[[Tensor, Tensor], None] | None

DENSE = "--compression.sparsifier=dense"


@pytest.mark.parametrize("is_users", [False, True])
@pytest.mark.parametrize("penalty", [None, lambda gradient, parameters: None], ids=["plain", "flat"])
@pytest.mark.parametrize("pieces", [1, 2, 4])
@pytest.mark.parametrize("name", TASKS)
def test_accumulation_weighs_by_the_labels_that_count(name: str, pieces: int, penalty: Penalty, is_users: bool) -> None:
    """The first piece has an example of which nothing counts."""
    task = without_criterion(TASKS[name]) if is_users else TASKS[name]
    batch = batch_of(name)
    expected = mean_gradient(TASKS[name], model_of(name), batch)
    used = AccelerateModel(
        EngineConfig(threads=1, gradient_accumulation_steps=pieces), model_of(name), CPU, sgd, task=task
    )
    start = used.parameters.clone()
    loss, count = used.step(batch, penalty)
    torch.testing.assert_close(moved(used, start), expected, rtol=1e-4, atol=1e-5)
    mean, counted = mean_loss(task, model_of(name), batch)
    torch.testing.assert_close(loss, mean)
    assert count == counted


def steps_of_a_rank(world: World, cases: list[tuple[str, bool, int]]) -> list[tuple[Tensor, Tensor]]:
    """The gradient and the loss of one step of each of the cases."""
    found = []
    for name, is_users, pieces in cases:
        task = without_criterion(TASKS[name]) if is_users else TASKS[name]
        engine = EngineConfig(threads=1, gradient_accumulation_steps=pieces)
        used = AccelerateModel(engine, model_of(name), CPU, sgd, task=task)
        used.distribute(GradientsConfig(), 0, partial(rank_weight, world), **vars(CompressionConfig(density=1.0)))
        start = used.parameters.clone()
        inputs, labels = (part.chunk(2)[world.rank] for part in batch_of(name))
        loss, _ = used.step((inputs, labels))
        found.append((moved(used, start), loss))
    return found


def test_ranks_weigh_by_the_labels_that_count() -> None:
    cases = [("next_token", False, 1), ("segmentation", True, 3), ("segmentation", False, 2), ("regression", False, 3)]
    results = run_ranks(steps_of_a_rank, 2, cases)
    for number, (name, _, _) in enumerate(cases):
        expected = mean_gradient(TASKS[name], model_of(name), batch_of(name))
        mean, _ = mean_loss(TASKS[name], model_of(name), batch_of(name))
        for of_rank in results:
            torch.testing.assert_close(of_rank[number][0], expected, rtol=1e-4, atol=1e-5)
        losses = torch.stack([of_rank[number][1] for of_rank in results])
        torch.testing.assert_close(losses.mean(), mean.detach())


@pytest.mark.parametrize("name", TASKS)
def test_clients_as_one_batch_take_the_steps_of_one_after_another(name: str) -> None:
    """What fills the shorter batch up counts for nothing."""
    task, model, (inputs, labels) = TASKS[name], model_of(name), batch_of(name)
    start = {key: value.detach() for key, value in model.named_parameters()}
    sizes = [4, 2]
    padded = [torch.stack([part[:4], part[[4, 5, 4, 4]]]) for part in (inputs, labels)]
    step = Step(padded[0], padded[1], torch.tensor(sizes))
    ends, losses, counts = train_stacked(model, start, 2, [step], sgd, task=task)
    for client, chosen in enumerate([slice(0, 4), slice(4, 6)]):
        batch = inputs[chosen], labels[chosen]
        expected = mean_gradient(task, model, batch)
        found = torch.cat([((value - end[client]) / 0.1).flatten() for value, end in zip(start.values(), ends)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (losses[client] / counts[client]).item() == pytest.approx(mean_loss(task, model, batch)[0].item())


@pytest.mark.parametrize("name", TASKS)
def test_pruning_averages_over_the_labels_that_count(name: str) -> None:
    task, model, (inputs, labels) = TASKS[name], model_of(name), batch_of(name)
    batches = list(zip(inputs.split(2), labels.split(2)))
    found = torch.cat([part.flatten() for part in gradient(model, list(model.parameters()), batches, task)])
    torch.testing.assert_close(found, mean_gradient(task, model, (inputs, labels)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["next_token", "segmentation"])
def test_a_batch_of_which_nothing_counts_moves_nothing(name: str) -> None:
    inputs, labels = batch_of(name)
    for task in (TASKS[name], without_criterion(TASKS[name])):
        for pieces in (1, 2):
            engine = EngineConfig(threads=1, gradient_accumulation_steps=pieces)
            used = AccelerateModel(engine, model_of(name), CPU, sgd, task=task)
            start = used.parameters.clone()
            loss, count = used.step((inputs, torch.full_like(labels, -100)))
            assert (loss, count) == (0, 0)
            assert torch.equal(used.parameters, start)


def test_a_plain_scalar_is_the_mean_over_the_examples() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.l1_loss(model(batch[0]), batch[1])

    inputs, labels = batch_of("regression")
    for pieces in (1, 4):
        engine = EngineConfig(threads=1, gradient_accumulation_steps=pieces)
        used = AccelerateModel(engine, model_of("regression"), CPU, sgd, task=Task(loss))
        start, model = used.parameters.clone(), model_of("regression")
        mean, count = used.step((inputs, labels))
        assert (mean.item(), count) == (pytest.approx(loss(model, (inputs, labels)).item()), EXAMPLES)
        parts = torch.autograd.grad(loss(model, (inputs, labels)), list(model.parameters()))
        torch.testing.assert_close(moved(used, start), torch.cat([p.flatten() for p in parts]), rtol=1e-4, atol=1e-5)


def test_recorded_steps_have_the_same_bits_and_can_be_turned_off() -> None:
    ends = []
    for recorded in ("auto", "off"):
        engine = EngineConfig(threads=1, recorded=recorded)
        used = AccelerateModel(engine, model_of("segmentation"), CPU, sgd, task=SEGMENTATION)
        assert (used._recordings is None) == (recorded == "off")
        losses = [used.step(batch_of("segmentation"))[0] for _ in range(3)]
        ends.append((used.parameters.clone(), torch.stack(losses)))
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize(
    ("name", "model", "keys", "further"),
    [
        ("regression", "numbers", {"rmse", "mae", "loss"}, ["--clients.lr=0.1"]),
        ("segmentation", "pixels", {"iou", "accuracy", "loss"}, ["--clients.lr=0.5", "--data.augment=crop_flip"]),
        (
            "next_token",
            "Words",
            {"perplexity", "accuracy", "loss"},
            ["--clients.lr=20", DENSE],
        ),
    ],
)
def test_a_task_trains_end_to_end(
    name: str,
    model: str,
    keys: set[str],
    further: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(SOURCES, "mine", partial(drawn, name))
    arguments = ["--data.name=mine", f"--model.name=tests.helpers.tasks:{model}", "--clients.num=4", "--rounds=6"]
    arguments += ["--data.normalize=none", "--clients.local_epochs=2", "--data.validation=0.1", "--engine.threads=1"]
    assert main(["train", *arguments, *further, f"--output_dir={tmp_path}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {f"{part}_{key}" for key in keys for part in ("test", "validation")} <= rows[0].keys()
    assert ("test_accuracy" in rows[0]) == ("accuracy" in keys)
    assert rows[-1]["test_loss"] < 0.7 * rows[0]["test_loss"]
    metric, direction = TASKS[name].best
    summary = json.loads((tmp_path / "summary.json").read_text())
    choose = max if direction == "max" else min
    best = choose(rows, key=lambda row: row[f"validation_{metric}"])
    assert (summary["best_round"], summary[f"best_{metric}"]) == (best["round"], best[f"test_{metric}"])
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"test {metric} {summary[f'test_{metric}']:.4f}  test loss")
    assert main(["bandwidth", str(tmp_path), f"--target={summary[f'best_{metric}']}", f"--output_dir={tmp_path}"]) == 0
    assert "not reached" not in capsys.readouterr().out
