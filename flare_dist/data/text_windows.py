"""Cut texts into windows of tokens, each with the token that follows as its label.

Unless there is a part for testing, the last fifth of each group's tokens is, as in the papers on Shakespeare's roles; a
group that is too short for a window of either is left out. A window never holds two texts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flare_dist.data.documents import Name, Text, column, numbers
from flare_dist.data.examples import Examples
from flare_dist.data.tokenizer import Tokenizer
from flare_dist.data.windows import Windows, cut, span, where_test_begins
from flare_dist.units import counted

log = logging.getLogger(__name__)

Grouped = dict[Name | None, Windows]
Tokens = dict[Name | None, list[Tensor]]  # the texts of each group; None = there are no groups


def windows_of_texts(
    documents: Mapping[str, Sequence[Text]], tokenizer: Tokenizer, length: int, pad: int | None
) -> dict[str, Examples]:
    """Cut the texts of each part into windows of `length` tokens; `pad` fills up the last of each text, None drops it.

    Raises ValueError that names data.sequence_length if a part would have no window.
    """
    tokens = {part: _by_group(texts, tokenizer) for part, texts in documents.items()}
    if "test" in tokens:
        windows = {part: _cut_all(own, length, pad) for part, own in tokens.items()}
    else:
        windows = _held_out(tokens["train"], length, pad)
    for part, found in windows.items():
        if not found:
            problem = f"no text is long enough for a {part} window of {length + 1} tokens, got {length}"
            raise ValueError(
                f"data.sequence_length: {problem}; choose less" + ("" if pad else ", or data.remainder=pad")
            )
    names = sorted({group for found in windows.values() for group in found if group is not None})
    examples = {part: _examples(found, names) for part, found in windows.items()}
    shown = " and ".join(f"{len(own)} {part} windows" for part, own in examples.items())
    log.info("data.root: %s of %d tokens, of %s", shown, length, counted(max(len(names), 1), "group"))
    return examples


def _by_group(texts: Sequence[Text], tokenizer: Tokenizer) -> Tokens:
    """Collect the tokens of each group's texts, groups in the order of their first text."""
    groups = column(texts, "group") or [None] * len(texts)
    found: Tokens = {}
    for group, tokens in zip(groups, tokenizer.encode([text.text for text in texts], None)):
        found.setdefault(group, []).append(tokens)
    return found


def _cut_all(tokens: Tokens, length: int, pad: int | None) -> Grouped:
    found = {group: cut(texts, length, pad) for group, texts in tokens.items()}
    return {group: windows for group, windows in found.items() if windows is not None}


def _held_out(tokens: Tokens, length: int, pad: int | None) -> dict[str, Grouped]:
    """Cut windows from each group and hold out its last fifth; groups without both are left out and counted."""
    train: Grouped = {}
    test: Grouped = {}
    left_out = 0
    total = 0
    for group, texts in tokens.items():
        count = sum(map(len, texts))
        begin = where_test_begins(count)
        first = cut(span(texts, 0, begin), length, pad)
        last = cut(span(texts, begin, count), length, pad)
        total += count
        if first is None or last is None:
            left_out += count
        else:
            train[group] = first
            test[group] = last
    if left_out:
        shown = f"{len(tokens) - len(train)} of {counted(len(tokens), 'group')}"
        share = 100 * left_out / total
        why = f"too short for a training and a test window of {length + 1} tokens"
        log.info("data.root: left out %s (%.2f %% of the text), %s", shown, share, why)
    return {"train": train, "test": test}


def _examples(found: Grouped, names: Sequence[Name]) -> Examples:
    groups = [group for group, windows in found.items() if group is not None for _ in range(len(windows))]
    return Examples(
        torch.cat([windows.inputs for windows in found.values()]),
        torch.cat([windows.labels for windows in found.values()]),
        numbers(groups, names) if names else None,
        is_text=True,
        group_names=tuple(names),
    )
