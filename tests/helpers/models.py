"""Models as users write them: some that work, some that do not fit, each by its name `tests.helpers.models:name`."""

from __future__ import annotations

import math
import sys
import warnings

import torch
from torch import Tensor, nn

from flare_dist.models.registry import Shape

MNIST = (1, 28, 28)

CIFAR = (3, 32, 32)

NOT_CALLABLE = 3


def linear(input_shape: Shape, num_classes: int) -> nn.Module:
    channels, height, width = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))


class Pair(nn.Module):
    """Scores and something else: always, or only while it trains."""

    def __init__(self, scores: nn.Module, always: bool) -> None:
        super().__init__()
        self.scores = scores
        self.always = always

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        scores = self.scores(x)
        return (scores, x) if self.always or self.training else scores


def two_outputs(input_shape: Shape, num_classes: int) -> nn.Module:
    return Pair(linear(input_shape, num_classes), always=True)


def two_outputs_while_training(input_shape: Shape, num_classes: int) -> nn.Module:
    return Pair(linear(input_shape, num_classes), always=False)


def one_class_too_many(input_shape: Shape, num_classes: int) -> nn.Module:
    return linear(input_shape, num_classes + 1)


def only_nine_inputs(input_shape: Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(9, num_classes))


def too_many_arguments(input_shape: Shape, num_classes: int, width: int) -> nn.Module:
    return linear(input_shape, num_classes)


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def weight_normed(input_shape: Shape, num_classes: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.Flatten(), torch.nn.utils.weight_norm(nn.Linear(3072, num_classes)))


def lazy(input_shape: Shape, num_classes: int) -> nn.Module:
    layers = (nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))
    return nn.Sequential(*layers)


def lazy_and_unreached(input_shape: Shape, num_classes: int) -> nn.Module:
    model = linear(input_shape, num_classes)
    model.other = nn.LazyLinear(3)
    model.forward = model[:2].forward  # type: ignore[index]
    return model


class WarmCache(nn.Module):
    """Keeps its last activation, as attention maps are kept for a plot, from its construction on."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.layer = linear(input_shape, num_classes)
        self.forward(torch.zeros(1, *input_shape))

    def forward(self, x: Tensor) -> Tensor:
        self.last: Tensor = self.layer(x)
        return self.last


class Skipping(nn.Module):
    """Has a parameter that it never uses, and skips a layer at random while it trains."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.layer, self.other = linear(input_shape, num_classes), nn.Linear(num_classes, num_classes)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x)
        skips = self.training and torch.rand(()) < 0.5
        return scores if skips else scores + self.other(scores)


def half(input_shape: Shape, num_classes: int) -> nn.Module:
    return linear(input_shape, num_classes).half()


class CutOff(nn.Module):
    """Gives scores that know nothing of its parameters."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.layer = linear(input_shape, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.layer(x).detach().numpy())


class Growing(CutOff):
    """Keeps the scores of its last batch in a buffer."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__(input_shape, num_classes)
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x)
        self.last = scores.detach()
        return scores


def on_meta(input_shape: Shape, num_classes: int) -> nn.Module:
    return linear(input_shape, num_classes).to("meta")


def uninitialised(input_shape: Shape, num_classes: int) -> nn.Module:
    model = linear(input_shape, num_classes)
    with torch.no_grad():
        model.get_parameter("1.bias").fill_(math.nan)
    return model


def script(input_shape: Shape, num_classes: int) -> nn.Module:
    sys.exit("usage: train.py")


def broken(input_shape: Shape, num_classes: int) -> nn.Module:
    return linear({}["sizes"], num_classes)  # type: ignore[index]


class Plain(nn.Module):
    """A model of somebody else's, with norms of every kind."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes), nn.BatchNorm1d(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(self.conv(x)).relu())
        return scores
