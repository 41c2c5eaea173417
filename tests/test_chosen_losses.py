"""Losses by name and weights of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from flare_dist.tasks.chosen_losses import MeanOnly, WeightedCrossEntropy, balanced_weights, check_weights

LABELS = torch.tensor([0, 0, 0, 0, 2, 2, 1])
SCORES = torch.linspace(-1, 2, 21, dtype=torch.float64).view(7, 3)


def test_balanced_weights_are_scikit_learn_s() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    assert balanced_weights(LABELS, 3) == pytest.approx(tuple(expected))
    assert sum(balanced_weights(LABELS, 3)[label] for label in LABELS) == pytest.approx(len(LABELS))


def test_ignored_labels_and_missing_classes_do_not_change_the_other_weights() -> None:
    padded = torch.cat([LABELS, torch.full((5,), -100)]).view(3, 4)
    assert balanced_weights(padded, 4) == (*balanced_weights(LABELS, 3), 1.0)


def test_a_batch_of_one_class_keeps_the_weight_of_that_class() -> None:
    """torch.nn.CrossEntropyLoss divides by the weights, so that a client of one class would train without them."""
    of_two = LABELS == 2
    weighted = WeightedCrossEntropy((1.0, 1.0, 3.0))(SCORES[of_two], LABELS[of_two])
    assert weighted.item() == pytest.approx(3 * F.cross_entropy(SCORES[of_two], LABELS[of_two]).item())


def test_each_sum_and_mean_of_weighted_losses_agree() -> None:
    criterion = WeightedCrossEntropy((0.5, 2.0, 1.0))
    each = criterion(SCORES, LABELS, reduction="none")
    assert criterion(SCORES, LABELS, reduction="sum").item() == pytest.approx(each.sum().item())
    assert criterion(SCORES, LABELS).item() == pytest.approx(each.mean().item())


def test_a_mean_is_added_up_over_the_labels_that_count() -> None:
    labels = torch.tensor([0, -100, 2])
    mean = MeanOnly(lambda outputs, labels: F.cross_entropy(outputs, labels), ignored=-100)
    total = mean(SCORES[:3], labels, reduction="sum").item()
    assert total == pytest.approx(F.cross_entropy(SCORES[:3], labels, reduction="sum").item())


def test_there_is_a_weight_for_each_class() -> None:
    with pytest.raises(ValueError, match=r"^task\.class_weights: must be 4 numbers, one for each class, got 3; or "):
        check_weights((1, 1, 1), 4)
