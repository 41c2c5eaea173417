"""Make examples of whole texts with a class each: tokens cut to one length, or filled up with the pad token.

Unless there is a part for testing, the last fifth of the texts of each group is, or of each class if there are none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from flare_dist.data.documents import Name, Text, column, numbers
from flare_dist.data.examples import Examples
from flare_dist.data.names import some
from flare_dist.data.tokenizer import Tokenizer, check_pad
from flare_dist.data.windows import filled, where_test_begins
from flare_dist.units import counted

log = logging.getLogger(__name__)


def whole_texts(
    documents: Mapping[str, Sequence[Text]], tokenizer: Tokenizer, length: int
) -> tuple[dict[str, Examples], list[str]]:
    """Make the examples of each part, of `length` tokens each, and list the names of the classes, sorted.

    Raises ValueError that names data.tokenizer if it has no pad token, or data.root if texts have no labels, or if none
    could be held out.
    """
    pad = check_pad(tokenizer, "task.name=classification")
    labels = {part: _labels(texts) for part, texts in documents.items()}
    parts = documents
    if "test" not in documents:
        parts = _divided(documents["train"])
        labels = {part: _labels(texts) for part, texts in parts.items()}
    groups = {part: column(texts, "group") for part, texts in parts.items()}
    classes = sorted({label for own in labels.values() for label in own})
    names = sorted({group for own in groups.values() for group in own or ()})
    examples = {}
    for part, texts in parts.items():
        own = groups[part]
        inputs = _filled(part, texts, tokenizer, length, pad)
        codes = None if own is None else numbers(own, names)
        examples[part] = Examples(inputs, numbers(labels[part], classes), codes, True, tuple(names))
        lacking = sorted(set(classes) - set(labels[part]))
        if lacking:
            shown = some(map(str, lacking))
            log.warning("data.root: no %s texts of %d of %d classes (%s)", part, len(lacking), len(classes), shown)
    return examples, [str(label) for label in classes]


def _filled(part: str, texts: Sequence[Text], tokenizer: Tokenizer, length: int, pad: int) -> torch.Tensor:
    """Encode texts to [n, length]."""
    tokens = tokenizer.encode([text.text for text in texts], length)
    full = sum(len(own) == length for own in tokens)
    if full:
        shown = f"{full} of {counted(len(texts), f'{part} text')}"
        log.info("data.sequence_length: %s have %d tokens or more, and are cut there", shown, length)
    return torch.stack([filled(own, length, pad) for own in tokens])


def _labels(texts: Sequence[Text]) -> list[Name]:
    labels = column(texts, "label")
    if labels is None:
        problem = "task.name=classification needs the class of each text, got none"
        raise ValueError(f'data.root: {problem}; give each line a "label", or put files into a folder for each class')
    return labels


def _divided(texts: Sequence[Text]) -> dict[str, list[Text]]:
    """Hold out the last fifth of each group or class."""
    places: dict[Name, list[int]] = {}
    for place, unit in enumerate(column(texts, "group") or _labels(texts)):
        places.setdefault(unit, []).append(place)
    held = {place for own in places.values() for place in own[where_test_begins(len(own)) :]}
    if not held:
        raise ValueError("data.root: no group or class has the five texts of which one would be for testing; add some")
    return {
        "train": [text for place, text in enumerate(texts) if place not in held],
        "test": [text for place, text in enumerate(texts) if place in held],
    }
