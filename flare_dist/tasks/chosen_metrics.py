"""More metrics of the built-in tasks by name, computed by torchmetrics.

Each is a function of the number of classes (of regression, of numbers) that makes a torchmetrics.Metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, classification, regression

from flare_dist.tasks.builtin import IGNORED

Maker = Callable[[int], Metric]


class MeanOverClasses(Metric):
    """Take the mean of a metric over the classes of which there are labels.

    torchmetrics counts the others as 0, which a group or a client that lacks a class does not deserve. Without both
    labels of a class and labels of others, nothing can be ranked: `needs_others` leaves such a class out, too.
    """

    higher_is_better = True
    full_state_update = False

    def __init__(self, by_class: Metric, classes: int, needs_others: bool = False) -> None:
        super().__init__()
        self.by_class = by_class
        self.needs_others = needs_others
        self.counts: Tensor
        self.add_state("counts", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Take in a batch: scores [n, classes, ...], labels int64 [n, ...]."""
        self.by_class.update(scores, labels)
        self.counts += labels[labels >= 0].flatten().bincount(minlength=len(self.counts))

    def compute(self) -> Tensor:
        """Return the mean; NaN if no class has the labels that it needs."""
        has_labels = self.counts > 0
        if self.needs_others:
            has_labels &= self.counts < self.counts.sum()
        values: Tensor = self.by_class.compute()
        return values[has_labels].mean()

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self.by_class.reset()


class R2(regression.R2Score):
    """Compute R squared; NaN of fewer than two examples, as of a group of one, for which torchmetrics raises."""

    def compute(self) -> Tensor:
        return super().compute() if self.total >= 2 else torch.tensor(math.nan)


def _of_classes(metric: Callable[..., Metric], **options: Any) -> Maker:
    """Make a metric of all labels together."""
    return lambda classes: metric(num_classes=classes, ignore_index=IGNORED, **options)


def _over_classes(metric: Callable[..., Metric], needs_others: bool = False) -> Maker:
    """Make the mean over the classes that are there."""
    make = _of_classes(metric, average="none")
    return lambda classes: MeanOverClasses(make(classes), classes, needs_others)


def _of_numbers(metric: Callable[..., Metric]) -> Maker:
    """Make a metric of outputs and labels as they are."""
    return lambda numbers: metric()


OF_CLASSES: dict[str, Maker] = {
    "balanced_accuracy": _over_classes(classification.MulticlassRecall),
    "f1": _of_classes(classification.MulticlassF1Score, average="macro"),
    "precision": _of_classes(classification.MulticlassPrecision, average="macro"),
    "kappa": _of_classes(classification.MulticlassCohenKappa),
    "matthews": _of_classes(classification.MulticlassMatthewsCorrCoef),
}
RANKED: dict[str, Maker] = {  # of scores, which they keep until the end of an evaluation
    "auroc": _over_classes(classification.MulticlassAUROC, needs_others=True),
    "average_precision": _over_classes(classification.MulticlassAveragePrecision, needs_others=True),
    "calibration_error": _of_classes(classification.MulticlassCalibrationError),
}
METRICS: dict[str, dict[str, Maker]] = {
    "classification": OF_CLASSES | RANKED,
    "next_token": OF_CLASSES,
    "segmentation": OF_CLASSES,
    "regression": {
        "mse": _of_numbers(regression.MeanSquaredError),
        "mape": _of_numbers(regression.MeanAbsolutePercentageError),
        "r2": _of_numbers(R2),
        "explained_variance": _of_numbers(regression.ExplainedVariance),
    },
}
