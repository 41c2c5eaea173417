"""Models by name: ours, torchvision's, the user's.

A new one of ours is one function (input_shape, num_classes) -> module and one line in MODELS.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flare_dist.errors import reason_in_code
from flare_dist.fixed import fix_base
from flare_dist.layout import TRAINED
from flare_dist.models.adapters import base_of_peft
from flare_dist.models.fasttext import fasttext
from flare_dist.models.flare import flare_cnn, flare_fc
from flare_dist.models.gru import gru
from flare_dist.models.hugging_face import PREFIX, hugging_face
from flare_dist.models.lstm import lstm
from flare_dist.models.resnet import resnet8, resnet18, resnet34, with_group_norm
from flare_dist.models.small import cnn, lenet, mnist_net, two_nn
from flare_dist.models.trial import blank_of, check_fit, has_lazy
from flare_dist.models.vgg import vgg11, vgg16, vgg19
from flare_dist.named import Options, WrongResultError, bind, expect, find
from flare_dist.seeding import derive_seed, seeded
from flare_dist.signatures import accepted
from flare_dist.tasks.batch import Blank
from flare_dist.tasks.task import Shape, Task
from flare_dist.vocabulary import Vocabulary

log = logging.getLogger(__name__)

KEY = "model.name"
GIVEN = ("input_shape", "num_classes")
EXAMPLE = "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))"

Builder = Callable[..., nn.Module]  # (shape of an input, classes), either None if there is none; text: vocabulary=


def find_builder(name: str, options: Options | None = None) -> Builder:
    """Find the function (input_shape, num_classes) -> module behind a model's name, with its options bound.

    Raises ValueError that names model.name or one of model.options; imports the user's module if it names one.
    """
    prefix, _, own = name.partition(":")
    if prefix == "hf":
        return bind(KEY, name, partial(hugging_face, own), options or {}, GIVEN, reserved=["vocabulary", "task"])
    if prefix == "torchvision":
        return bind(KEY, name, _torchvision_builder(own), options or {}, GIVEN, reserved=["weights"])
    found = find(KEY, name, MODELS, ["torchvision:NAME", "hf:DIR_OR_NAME"])
    return bind(KEY, name, found, options or {}, GIVEN, reserved=["vocabulary"])


def _torchvision_builder(name: str) -> Builder:
    """Make the builder of a classifier of torchvision; ValueError that names similar ones if there is none."""
    import torchvision  # seconds, which runs without its models save

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        similar = " or ".join(get_close_matches(name, known, 2)) or "one that torchvision.models.list_models() names"
        raise ValueError(f"model.name: torchvision has no classifier {name!r}; did you mean {similar}?")

    def build(input_shape: Shape, num_classes: int, **options: Any) -> nn.Module:
        if len(input_shape) != 3 or input_shape[0] != 3:
            raise ValueError(f"it takes images of 3 channels, got inputs of shape {input_shape}")
        # These two give auxiliary scores too while they train, and a task takes one score for each class.
        own = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **own | options)

    return build


def build(
    name: str,
    norm: str,
    input_shape: Shape | None,
    num_classes: int | None,
    seed: int,
    task: Task,
    dtype: torch.dtype = torch.float32,
    options: Options | None = None,
    *,
    blank: Blank | None = None,
    vocabulary: Vocabulary | None = None,
) -> nn.Module:
    """Build the model on the CPU, with weights drawn from `seed`, and try it on `blank`, by default zeros of `dtype`.

    A builder with a parameter `vocabulary` is given that of texts, None of other data. `norm` group puts GroupNorm in
    place of BatchNorm2d; otherwise no layer is touched. Raises ValueError naming model.name if the model does not take
    such inputs or does not give the outputs that the task needs.
    """
    builder = find_builder(name, options)  # before the seed, for the user's module may draw while it is imported
    with seeded(derive_seed(seed, "model")):
        model = _construct(name, builder, input_shape, num_classes, vocabulary, task)
        tried = blank_of(input_shape or (), dtype) if blank is None else blank
        try:
            if norm == "group":
                if has_lazy(model):  # lazy norms become BatchNorm2d at the first call
                    check_fit(model, tried, num_classes, task)
                _replace_norms(name, model)
            check_fit(model, tried, num_classes, task)
        except WrongResultError:  # of the task, which it names
            raise
        except ValueError as error:
            raise ValueError(f"model.name: {name} {error}") from error
    _check_parameters(name, model)
    return model


def _check_parameters(name: str, model: nn.Module) -> None:
    """Raise ValueError that names model.name if nothing can be trained, or if initial weights are not finite."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.name: {name} has no trainable parameters")
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise ValueError(
                f"model.name: {name} begins with weights that are not finite ({parameter_name}); torch.empty and "
                "torch.Tensor leave them as the memory was, so initialise them"
            )


def _construct(
    name: str,
    builder: Builder,
    shape: Shape | None,
    num_classes: int | None,
    vocabulary: Vocabulary | None,
    task: Task,
) -> nn.Module:
    """Call a builder; ValueError if it makes no module, or one on another device or of another precision."""
    known = {"task": task} if name.startswith(PREFIX) else {}
    try:
        model = builder(shape, num_classes, **known, **accepted(builder, vocabulary=vocabulary))
    except (Exception, SystemExit) as error:  # whatever somebody's code may raise
        if known and isinstance(error, ValueError | ModuleNotFoundError):
            raise  # it names its key
        raise ValueError(
            f"model.name: cannot build {name} for inputs of shape {shape}: {reason_in_code(error)}"
        ) from error
    expect(KEY, name, model, nn.Module, EXAMPLE)
    for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(
                f"model.name: {name} has {tensor_name} on {tensor.device}; build it on the CPU, engine.device moves it"
            )
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in TRAINED:
            raise ValueError(
                f"model.name: {name} has parameters of {parameter.dtype} ({parameter_name}); build it in torch.float32 "
                "or bfloat16, and choose the precision of training by engine.mixed_precision"
            )
    if not known and (base := base_of_peft(model)):
        fix_base(model, base)
    return model


def _replace_norms(name: str, model: nn.Module) -> None:
    """Put GroupNorm in place of BatchNorm2d; the log has how many norms of which class are replaced, and which stay."""
    gone = _count_norms(model)
    if not gone:
        return
    with_group_norm(model)
    stays = _count_norms(model)
    replaced = ", ".join(f"{gone[kind] - stays[kind]} {kind}" for kind in gone if gone[kind] > stays[kind])
    kept = "; of others it has " + ", ".join(f"{stays[kind]} {kind}" for kind in stays) if stays else ""
    log.info("model.norm: group replaces %s of %s by GroupNorm%s", replaced or "no BatchNorm2d", name, kept)


def _count_norms(model: nn.Module) -> Counter[str]:
    """Count the norms over a batch by the name of their class."""
    return Counter(type(part).__name__ for part in model.modules() if isinstance(part, _BatchNorm))


MODELS: dict[str, Builder] = {
    "2nn": two_nn,
    "cnn": cnn,
    "fasttext": fasttext,
    "flare_fc": flare_fc,
    "flare_cnn": flare_cnn,
    "gru": gru,
    "lenet": lenet,
    "lstm": lstm,
    "mnist_net": mnist_net,
    "resnet8": resnet8,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg19": vgg19,
}
