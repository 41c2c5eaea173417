"""Models by name: ours, torchvision's, the user's."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable

import torch
from torch import nn

from flare_dist.models.flare import flare_cnn, flare_fc
from flare_dist.models.gru import gru
from flare_dist.models.resnet import resnet8, resnet18, resnet34, with_group_norm
from flare_dist.models.small import cnn, lenet, mnist_net, two_nn
from flare_dist.models.vgg import vgg11, vgg16, vgg19
from flare_dist.seeding import derive_seed

Shape = tuple[int, ...]  # channels, height, width; of text the length
Builder = Callable[[Shape, int], nn.Module]


def check_name(name: str) -> None:
    """Raise ValueError naming model.name where `name` is no model; imports the user's module where it names one."""
    find_builder(name)


def find_builder(name: str) -> Builder:
    """The function (input_shape, num_classes) -> module behind a model's name."""
    if name in MODELS:
        return MODELS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(
            f"model.name: unknown model {name!r} (choose from {', '.join(MODELS)}, torchvision:NAME or "
            "package.module:callable)"
        )
    if module == "torchvision":
        return _torchvision_builder(attribute)
    if os.getcwd() not in sys.path:  # the user's own module, which a console script would not find beside it
        sys.path.insert(0, os.getcwd())
    try:
        builder = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"model.name: cannot import {name!r}: {error}") from error
    if not callable(builder):
        raise ValueError(f"model.name: {name!r} is not callable")
    return builder


def _torchvision_builder(name: str) -> Builder:
    import torchvision  # seconds, which runs without its models save

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(f"model.name: torchvision has no classifier {name!r}")

    def build(input_shape: Shape, num_classes: int) -> nn.Module:
        if len(input_shape) != 3 or input_shape[0] != 3:
            raise ValueError(f"it wants images of 3 channels, the data has inputs of shape {input_shape}")
        # Two classifiers give auxiliary scores while training, where one score a class is wanted.
        options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)

    return build


def build(name: str, norm: str, input_shape: Shape, num_classes: int, seed: int) -> nn.Module:
    """The model with initial weights drawn from `seed`, on the CPU, trying it on one input of `input_shape`.

    Raises ValueError naming model.name where the model does not take such inputs or does not give one score a class.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        builder = find_builder(name)
        try:
            model = builder(input_shape, num_classes)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"model.name: cannot build {name} for inputs of shape {input_shape}: {error}") from error
        if not isinstance(model, nn.Module):
            raise ValueError(f"model.name: {name} gives a {type(model).__name__}, not a torch.nn.Module")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"model.name: {name} has no trainable parameters")
        if norm == "group":
            model = with_group_norm(model)
        for training in (True, False):
            _check_scores(name, copy.deepcopy(model).train(training), input_shape, num_classes)
    return model


def _check_scores(name: str, model: nn.Module, input_shape: Shape, num_classes: int) -> None:
    try:
        with torch.no_grad():
            scores = model(torch.zeros(2, *input_shape, dtype=torch.long if len(input_shape) == 1 else torch.float))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"model.name: {name} does not take inputs of shape {input_shape}: {error}") from error
    shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    places = input_shape if len(input_shape) == 1 else ()  # a text has a label at every place
    if shape != (2, num_classes, *places):
        expected = ", ".join(["batch", *map(str, (num_classes, *places))])
        raise ValueError(f"model.name: {name} must give scores of shape ({expected}), it gives {shape}")


MODELS: dict[str, Builder] = {
    "2nn": two_nn,
    "cnn": cnn,
    "flare_fc": flare_fc,
    "flare_cnn": flare_cnn,
    "gru": gru,
    "lenet": lenet,
    "mnist_net": mnist_net,
    "resnet8": resnet8,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg19": vgg19,
}
