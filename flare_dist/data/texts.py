"""Make a data set of the texts at `data.root`, for the task: a token after each token, or a class for each text."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from flare_dist.data.documents import column, read_documents
from flare_dist.data.examples import Examples
from flare_dist.data.source import Source
from flare_dist.data.text_classes import whole_texts
from flare_dist.data.text_windows import windows_of_texts
from flare_dist.data.tokenizer import check_pad, open_tokenizer
from flare_dist.tasks.config import AUTO

CLASSIFICATION = "classification"
PAD = "pad"
REMAINDERS = ("drop", PAD)


class TextConfig(Protocol):
    """List what is read of the data's configuration."""

    @property
    def root(self) -> str: ...

    @property
    def tokenizer(self) -> str: ...

    @property
    def sequence_length(self) -> int: ...

    @property
    def remainder(self) -> str: ...


def text_source(config: TextConfig, seed: int, task: str = AUTO) -> Source:
    """Load texts, whose layout is in `documents.py`, for a task: auto is classification if they have labels.

    Every other task gets windows, in which each token has the next one as its label. Raises ValueError that names
    data.root, data.tokenizer or data.sequence_length.
    """
    tokenizer = open_tokenizer(config.tokenizer)
    vocabulary = tokenizer.vocabulary
    documents = read_documents(Path(config.root), task == CLASSIFICATION)
    if task == AUTO and column(documents["train"], "label") is not None:
        task = CLASSIFICATION
    parts: dict[str, Examples]
    classes: list[str] | int
    if task == CLASSIFICATION:
        parts, classes = whole_texts(documents, tokenizer, config.sequence_length)
    else:
        task = "next_token"
        pad = check_pad(tokenizer, "data.remainder=pad") if config.remainder == PAD else None
        parts = windows_of_texts(documents, tokenizer, config.sequence_length, pad)
        classes = vocabulary.size
    validation = parts.get("validation")
    return Source(parts["train"], parts["test"], validation, classes, task=task, vocabulary=vocabulary)
