"""For each built-in task a model, a batch and data that the model learns."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flare_dist.data.config import DataConfig
from flare_dist.data.examples import Examples
from flare_dist.data.source import Source
from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.tasks.task import Batch, Task

CPU = torch.device("cpu")

CLASSES = 5

EXAMPLES = 6

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

    return Source(part(240), part(60), classes={"next_token": 300}.get(name, 3), task=name)
