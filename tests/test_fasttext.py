"""The bag of tokens: their mean, whatever their order, without padding."""

from __future__ import annotations

import torch

from flare_dist.models.fasttext import FastText
from flare_dist.vocabulary import Vocabulary


def test_scores_are_those_of_the_mean_embedding() -> None:
    model = FastText(Vocabulary(6, 0), 3).double()
    scores = model(torch.tensor([[2, 5, 0, 0], [5, 2, 0, 0], [0, 0, 0, 0]]))
    mean = (model.embedding.weight[2] + model.embedding.weight[5]) / 2
    torch.testing.assert_close(scores[0], model.head(mean))
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[2], model.head.bias)
