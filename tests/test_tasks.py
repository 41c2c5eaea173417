"""Tasks: losses add up over pieces, ranks and clients, ignored labels weigh nothing, each trains end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flare_dist
from flare_dist.cli import main
from flare_dist.clients.batched import Step, train_stacked
from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.data.batches import BatchSource
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.data.examples import Examples
from flare_dist.data.sources import SOURCES, Source
from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.rounds.gradient import rank_weight
from flare_dist.sparse_training.pruning import gradient
from flare_dist.tasks.builtin import NEXT_TOKEN, REGRESSION, SEGMENTATION, TASKS
from flare_dist.tasks.config import find_task
from flare_dist.tasks.task import Amount, Batch, Task, add, finish, mean_loss, measure
from tests.ranks import run_ranks

Penalty = Callable[[Tensor, Tensor], None] | None

CPU = torch.device("cpu")
CLASSES, EXAMPLES = 5, 6
DENSE = "--compression.sparsifier=dense"
SHAPES = {"classification": (4,), "next_token": (7,), "segmentation": (2, 8, 8), "regression": (4,)}


class Words(nn.Module):
    """Scores for the token after each of a sequence."""

    def __init__(self, input_shape: tuple[int, ...] = (7,), classes: int = CLASSES) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(classes, 6), nn.Linear(6, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.embedding(inputs)).transpose(1, 2)


def pixels(input_shape: tuple[int, ...] = (2, 8, 8), classes: int = CLASSES) -> nn.Module:
    """Scores for each pixel."""
    return nn.Conv2d(input_shape[0], classes, 3, padding=1)


def numbers(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes))


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    kinds = {"next_token": Words, "segmentation": pixels}
    return kinds[name]() if name in kinds else nn.Linear(4, CLASSES)


def batch_of(name: str) -> Batch:
    """A batch with ignored labels, if the task has such: all of the first example's, a few of the others'."""
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, *SHAPES[name], generator=draws)
    if name == "regression":
        return inputs, torch.randn(EXAMPLES, CLASSES, generator=draws)
    shape = {"classification": (), "next_token": (7,), "segmentation": (8, 8)}[name]
    labels = torch.randint(CLASSES, (EXAMPLES, *shape), generator=draws)
    if name != "classification":
        labels[torch.rand(labels.shape, generator=draws) < 0.3] = -100
        labels[0] = -100
    if name == "next_token":
        inputs = torch.randint(CLASSES, (EXAMPLES, 7), generator=draws)
    return inputs, labels


def without_criterion(task: Task) -> Task:
    """The same as a user's task whose loss alone tells how many labels count."""
    return task._replace(criterion=None, ignored=None)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def mean_gradient(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """Of the mean over the labels that count, in plain PyTorch."""
    loss = task.loss(model, batch)
    assert isinstance(loss, tuple)
    parts = torch.autograd.grad(loss[0] / loss[1], list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def moved(model: AccelerateModel, start: Tensor) -> Tensor:
    """The gradient that one step of `sgd` took."""
    return (start - model.parameters) / 0.1


def test_a_task_is_public() -> None:
    assert flare_dist.Task is Task


@pytest.mark.parametrize("name", TASKS)
def test_pieces_of_a_batch_add_up_to_the_whole(name: str) -> None:
    task, model, (inputs, labels) = TASKS[name], model_of(name), batch_of(name)
    whole = finish(task, add({}, measure(task, model, (inputs, labels))))
    totals: dict[str, Amount] = {}
    for piece in zip(inputs.split(4), labels.split(4)):
        totals = add(totals, measure(task, model, piece))
    assert finish(task, totals) == pytest.approx(whole, rel=1e-6)
    assert task.best[0] in whole
    mean, count = mean_loss(task, model, (inputs, labels))
    assert whole["loss"] == pytest.approx(mean.item(), rel=1e-6)
    assert count == (labels != -100).sum()


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
    loss, count = used.step(*batch, penalty)
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
        loss, _ = used.step(inputs, labels)
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
            loss, count = used.step(inputs, torch.full_like(labels, -100))
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
        mean, count = used.step(inputs, labels)
        assert (mean.item(), count) == (pytest.approx(loss(model, (inputs, labels)).item()), EXAMPLES)
        parts = torch.autograd.grad(loss(model, (inputs, labels)), list(model.parameters()))
        torch.testing.assert_close(moved(used, start), torch.cat([p.flatten() for p in parts]), rtol=1e-4, atol=1e-5)


def test_recorded_steps_have_the_same_bits_and_can_be_turned_off() -> None:
    ends = []
    for recorded in ("auto", "off"):
        engine = EngineConfig(threads=1, recorded=recorded)
        used = AccelerateModel(engine, model_of("segmentation"), CPU, sgd, task=SEGMENTATION)
        assert (used._recordings is None) == (recorded == "off")
        losses = [used.step(*batch_of("segmentation"))[0] for _ in range(3)]
        ends.append((used.parameters.clone(), torch.stack(losses)))
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("augment", ["crop", "flip", "crop_flip"])
def test_augmentation_moves_the_labels_of_pixels_with_the_image(augment: str) -> None:
    """Each pixel's value is its label plus one, so that 0 comes from outside only."""
    labels = torch.arange(4 * 64).view(4, 8, 8)
    examples = Examples((labels[:, None] + 1).float(), labels)
    source = BatchSource(examples, torch.zeros(1), torch.ones(1), "cpu", augment, outside=-100)
    ((inputs, found),) = source.batches(None, 4, torch.Generator().manual_seed(3))
    expected = torch.where(inputs[:, 0] == 0, -100, inputs[:, 0].long() - 1)
    assert torch.equal(found, expected)
    assert not torch.equal(found.sort(0).values, labels)


def drawn(name: str, config: DataConfig, seed: int) -> Source:
    """Examples that a linear model learns, of which some labels are ignored."""
    draws = torch.Generator().manual_seed(seed)

    def part(count: int) -> Examples:
        images = torch.randn(count, 2, 8, 8, generator=draws)
        if name == "regression":
            return Examples(images, images.flatten(1)[:, :3] * 2)
        if name == "segmentation":
            labels = (images[:, 0] > 0).long() + (images[:, 1] > 0).long()
            labels[torch.rand(labels.shape, generator=draws) < 0.2] = -100
            return Examples(images, labels)
        tokens = torch.randint(300, (count, 12), generator=draws)
        labels = (tokens + 1) % 300
        labels[:, 9:] = -100  # padding
        return Examples(tokens, labels, is_text=True)

    return Source(part(240), part(60), {"next_token": 300}.get(name, 3), task=name)


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
    arguments = ["--data.name=mine", f"--model.name=tests.test_tasks:{model}", "--clients.num=4", "--rounds=6"]
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


def test_the_task_is_the_data_s_own_unless_it_is_named() -> None:
    assert load(DataConfig(name="digits"), 0).task_name == "classification"
    with pytest.raises(ValueError, match=r"^data\.name: digits: train: labels must be float32 \[1442, 10\], got int64"):
        load(DataConfig(name="digits"), 0, "regression")
    with pytest.raises(ValueError, match=r"^task\.name: unknown task 'ranking' \(choose from auto, classification"):
        find_task("ranking")


def test_partitions_by_label_need_one_class_for_each_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SOURCES, "mine", partial(drawn, "regression"))
    arguments = ["--data.name=mine", "--model.name=tests.test_tasks:numbers", f"--output_dir={tmp_path}"]
    assert main(["train", *arguments, "--data.partition=dirichlet"]) == 2
    assert main(["partition", *arguments, "--clients.num=3"]) == 0


def test_iou_is_the_mean_over_the_classes_that_are_there() -> None:
    labels = torch.tensor([[[0, 0, 1, -100]]])
    scores = F.one_hot(torch.tensor([[[0, 1, 1, 3]]]), 4).permute(0, 3, 1, 2).float()
    found = finish(SEGMENTATION, add({}, measure(SEGMENTATION, nn.Identity(), (scores, labels))))
    assert (found["accuracy"], found["iou"]) == (pytest.approx(2 / 3), pytest.approx(0.5))


def test_regression_and_perplexity_are_of_all_examples_not_of_batches() -> None:
    outputs = torch.tensor([[1.0], [2.0], [5.0]])
    totals: dict[str, Amount] = {}
    for piece in outputs.split(2):
        totals = add(totals, measure(REGRESSION, nn.Identity(), (piece, torch.zeros_like(piece))))
    assert finish(REGRESSION, totals) == pytest.approx({"loss": 10, "mae": 8 / 3, "rmse": 10**0.5})
    one, none = torch.ones(()), torch.zeros(())
    assert NEXT_TOKEN.finish({"loss": (1e4 * one, 1), "accuracy": (none, 1)})["perplexity"] == math.inf
    assert Config().task.name == "auto"
