"""Cut tokens into examples of one length: windows in which each token is followed by its label, or whole texts.

Everything here works on tensors. text_windows.py and text_classes.py decide which text belongs to whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.tasks.builtin import IGNORED


class Windows(NamedTuple):
    """Hold n windows: the inputs [n, T], and the token that follows each of them, int64 [n, T] or -100 for none."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


def where_test_begins(count: int) -> int:
    """Return the place at which the last fifth begins, rounded down, which is held out for testing."""
    return count - count // 5


def span(texts: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    """Cut the tokens from `start` to `stop` out of texts laid end to end; the pieces of different texts stay apart."""
    pieces = []
    begin = 0
    for text in texts:
        piece = text[max(start - begin, 0) : max(stop - begin, 0)]
        if len(piece):
            pieces.append(piece)
        begin += len(text)
    return pieces


def cut(pieces: Sequence[Tensor], length: int, pad: int | None = None) -> Windows | None:
    """Cut each piece into runs of length + 1 tokens, of which all but the last are inputs; None if there is no run.

    What is left over at the end of a piece is not used, or, with a `pad` token, filled up with it: no label is counted
    there.
    """
    inputs = []
    labels = []
    for piece in pieces:
        used = len(piece) // (length + 1) * (length + 1)
        runs = piece[:used].view(-1, length + 1)
        inputs.append(runs[:, :-1])
        labels.append(runs[:, 1:].long())
        rest = piece[used:]
        if pad is not None and len(rest) > 1:
            inputs.append(filled(rest[:-1], length, pad)[None])
            labels.append(filled(rest[1:].long(), length, IGNORED)[None])
    if not sum(map(len, inputs)):
        return None
    return Windows(torch.cat(inputs), torch.cat(labels))


def filled(tokens: Tensor, length: int, value: int) -> Tensor:
    """Fill up [t] on the right to [length] with `value`."""
    return torch.cat([tokens, tokens.new_full((length - len(tokens),), value)])
