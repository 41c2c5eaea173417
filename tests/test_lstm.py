"""The LSTM of FedAvg's Shakespeare runs."""

from __future__ import annotations

import pytest
import torch

from flare_dist.layout import parameter_layout
from flare_dist.models.lstm import lstm
from flare_dist.vocabulary import Vocabulary


def test_it_has_the_published_size_to_within_a_symbol() -> None:
    """866,578 are published, without the number of symbols; one more of them is 265 weights more."""
    total = parameter_layout(lstm((80,), 257, Vocabulary(257, 256))).total
    assert total == 866_825
    assert abs(total - 866_578) < 265


def test_it_looks_back_only() -> None:
    model = lstm((6,), 11).double()
    tokens = torch.arange(6)[None]
    changed = tokens.clone()
    changed[0, 4:] = 9
    scores = model(tokens)
    assert scores.shape == (1, 11, 6)
    assert torch.equal(scores[..., :4], model(changed)[..., :4])
    assert not torch.equal(scores[..., 4:], model(changed)[..., 4:])


def test_it_refuses_images() -> None:
    with pytest.raises(
        ValueError, match=r"it reads text \(data\.name=text or shakespeare\), got inputs of shape \(1, 2"
    ):
        lstm((1, 28, 28), 10)
