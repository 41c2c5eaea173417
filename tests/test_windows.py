"""Windows hold the tokens in order, each with its follower, and nothing counts that is not there."""

from __future__ import annotations

import pytest
import torch

from flare_dist.data.windows import cut, filled, span, where_test_begins

TEXTS = [torch.arange(0, 7), torch.arange(10, 13), torch.arange(20, 31)]


@pytest.mark.parametrize("begin", range(22))
def test_spans_part_the_tokens_and_keep_texts_apart(begin: int) -> None:
    first, last = span(TEXTS, 0, begin), span(TEXTS, begin, 21)
    assert torch.equal(torch.cat([*first, *last]), torch.cat(TEXTS))
    assert sum(map(len, first)) == begin
    for piece in (*first, *last):
        assert len(piece)
        assert torch.equal(piece, torch.arange(int(piece[0]), int(piece[0]) + len(piece)))  # of one text


def test_windows_do_not_overlap_and_labels_follow() -> None:
    windows = cut(TEXTS, 3)
    assert windows is not None
    assert windows.inputs.tolist() == [[0, 1, 2], [20, 21, 22], [24, 25, 26]]
    assert torch.equal(windows.labels, windows.inputs + 1)
    assert cut(TEXTS, 11) is None


def test_padding_counts_nowhere_and_no_token_is_lost() -> None:
    windows = cut([torch.arange(0, 7), torch.tensor([3]), torch.tensor([4, 5])], 3, pad=99)
    assert windows is not None
    assert windows.inputs.tolist() == [[0, 1, 2], [4, 5, 99], [4, 99, 99]]
    assert windows.labels.tolist() == [[1, 2, 3], [5, 6, -100], [5, -100, -100]]


def test_the_pad_token_within_a_text_counts() -> None:
    windows = cut([torch.tensor([9, 1, 9, 9])], 4, pad=9)
    assert windows is not None
    assert windows.labels.tolist() == [[1, 9, 9, -100]]


def test_the_last_fifth_is_rounded_down() -> None:
    assert [n - where_test_begins(n) for n in (0, 4, 5, 9, 10, 1343)] == [0, 0, 1, 1, 2, 268]


def test_rows_are_filled_on_the_right_in_their_own_type() -> None:
    row = filled(torch.tensor([1, 2], dtype=torch.int16), 4, 256)
    assert row.dtype == torch.int16
    assert row.tolist() == [1, 2, 256, 256]
