"""The built-in tasks.

classification: a class for each example. next_token: a class at each place of a sequence, so that language models learn
the token that follows. segmentation: a class for each pixel of an image. regression: numbers for each example.
Labels of next_token and segmentation that are -100, as padding is, count in neither loss nor metrics.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flare_dist.tasks.losses import Judged, OfOutputs
from flare_dist.tasks.task import Count, Shape, Task, Totals, ratio, ratios

IGNORED = -100  # torch.nn.functional.cross_entropy's default


def classes_right(scores: Tensor, labels: Tensor, count: Count) -> Totals:
    """Count the labels that have the highest score; those that are ignored never have."""
    return {"accuracy": ((scores.argmax(1) == labels).sum(), count)}


def with_perplexity(totals: Totals) -> dict[str, float]:
    """Add the perplexity, exp(mean loss): the number of tokens between which the model is undecided."""
    found = ratios(totals)
    return found | {"perplexity": math.exp(found["loss"]) if found["loss"] < 700 else math.inf}


def confusion(scores: Tensor, labels: Tensor, count: Count) -> Totals:
    """Count the pixels of each class by the class predicted: int64 [true, predicted]."""
    classes = scores.shape[1]
    counts = labels != IGNORED
    pairs = labels[counts] * classes + scores.argmax(1)[counts]
    return {"confusion": torch.bincount(pairs, minlength=classes * classes).view(classes, classes)}


def overlaps(totals: Totals) -> dict[str, float]:
    """Compute accuracy and iou: intersection over union, its mean over the classes that are there or are predicted."""
    table = totals["confusion"]
    assert isinstance(table, Tensor)
    right = table.diagonal()
    union = table.sum(0) + table.sum(1) - right
    iou = (right[union > 0] / union[union > 0]).mean().item()
    return {"accuracy": ratio("accuracy", (right.sum(), table.sum())), "iou": iou}


def errors(outputs: Tensor, labels: Tensor, count: Count) -> Totals:
    """Add up the absolute and the squared errors."""
    return {
        "mae": (F.l1_loss(outputs, labels, reduction="sum"), count),
        "mse": (F.mse_loss(outputs, labels, reduction="sum"), count),
    }


def with_root(totals: Totals) -> dict[str, float]:
    """Compute the mean absolute error, and the root of the mean squared one."""
    found = ratios(totals)
    return {"loss": found["loss"], "mae": found["mae"], "rmse": math.sqrt(found["mse"])}


def one_class(labels: Tensor, inputs: Shape, classes: int) -> None:
    """Refuse all but int64 [n] of classes."""
    _check_classes(labels, inputs[:1], classes, None)


def class_per_token(labels: Tensor, inputs: Shape, classes: int) -> None:
    """Refuse all but int64 [n, T] of classes or -100."""
    _check_classes(labels, inputs, classes, IGNORED)


def class_per_pixel(labels: Tensor, inputs: Shape, classes: int) -> None:
    """Refuse all but int64 [n, H, W] of classes or -100."""
    _check_classes(labels, (inputs[0], *inputs[2:]), classes, IGNORED)


def _check_classes(labels: Tensor, shape: Shape, classes: int, ignored: int | None) -> None:
    if labels.dtype != torch.int64 or labels.shape != shape:
        raise ValueError(f"labels must be int64 {list(shape)}, one class for each, got {describe_tensor(labels)}")
    counting = labels if ignored is None else labels[labels != ignored]
    if not counting.numel():
        raise ValueError(f"labels must not all be {ignored}")
    least, most = (int(end) for end in counting.aminmax())
    if least < 0 or most >= classes:
        raise ValueError(f"labels must be classes 0 to {classes - 1}, got {least if least < 0 else most}")


def finite_numbers(labels: Tensor, inputs: Shape, classes: int) -> None:
    """Refuse all but finite float32 [n, outputs]."""
    if labels.dtype != torch.float32 or labels.shape != (inputs[0], classes):
        raise ValueError(f"labels must be float32 {[inputs[0], classes]}, got {describe_tensor(labels)}")
    if not labels.isfinite().all():
        raise ValueError("labels must be finite, got infinite ones or NaN")


def describe_tensor(tensor: Tensor) -> str:
    """Name the type and shape of a tensor for an error, as in "uint8 [4, 2]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


CLASSIFICATION = Task(
    loss=OfOutputs(F.cross_entropy),
    metrics=Judged(classes_right, F.cross_entropy),
    best=("accuracy", "max"),
    outputs=lambda input_shape, classes: (classes,),
    criterion=F.cross_entropy,
    check_labels=one_class,
    class_of="example",
)
NEXT_TOKEN = Task(
    loss=OfOutputs(F.cross_entropy, IGNORED),
    metrics=Judged(classes_right, F.cross_entropy, IGNORED),
    finish=with_perplexity,
    best=("accuracy", "max"),
    outputs=lambda input_shape, classes: (classes, *input_shape),
    criterion=F.cross_entropy,
    ignored=IGNORED,
    check_labels=class_per_token,
    class_of="token",
)
SEGMENTATION = Task(
    loss=OfOutputs(F.cross_entropy, IGNORED),
    metrics=Judged(confusion, F.cross_entropy, IGNORED),
    finish=overlaps,
    best=("iou", "max"),
    outputs=lambda input_shape, classes: (classes, *input_shape[1:]),
    criterion=F.cross_entropy,
    ignored=IGNORED,
    check_labels=class_per_pixel,
    class_of="pixel",
)
REGRESSION = Task(
    loss=OfOutputs(F.mse_loss),
    metrics=Judged(errors, F.mse_loss),
    finish=with_root,
    best=("rmse", "min"),
    outputs=lambda input_shape, numbers: (numbers,),
    criterion=F.mse_loss,
    check_labels=finite_numbers,
)

TASKS: dict[str, Task] = {
    "classification": CLASSIFICATION,
    "next_token": NEXT_TOKEN,
    "segmentation": SEGMENTATION,
    "regression": REGRESSION,
}
