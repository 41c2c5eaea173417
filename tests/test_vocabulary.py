"""The attention mask that a model derives from tokens and the pad token."""

from __future__ import annotations

import torch

import flare_dist
from flare_dist.vocabulary import Vocabulary


def test_the_mask_ends_with_the_last_token_that_is_no_padding() -> None:
    tokens = torch.tensor([[5, 6, 0, 0], [5, 0, 7, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    mask = Vocabulary(8, 0).attention_mask(tokens)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [2, 3, 0, 4]  # a pad token between others is text, as an end-of-text token may be
    assert all(row[: row.sum()].all() for row in mask)


def test_without_a_pad_token_all_is_text() -> None:
    assert Vocabulary(8).attention_mask(torch.zeros(2, 3, dtype=torch.int64)).all()


def test_many_clients_as_one_batch_have_the_same_mask() -> None:
    tokens = torch.randint(0, 3, (4, 5, 6), generator=torch.Generator().manual_seed(0))
    vocabulary = flare_dist.Vocabulary(3, 0)
    assert torch.equal(torch.vmap(vocabulary.attention_mask)(tokens), vocabulary.attention_mask(tokens))
