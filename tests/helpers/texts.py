"""Texts on the disk, and a tokenizer of Hugging Face that is trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flare_dist.data.config import DataConfig

WORDS = ("alpha", "beta", "gamma", "delta")


def write_lines(path: Path, *rows: dict[str, Any] | str) -> Path:
    """Write JSON lines; a string is a line as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def text_config(root: Path, **settings: Any) -> DataConfig:
    return DataConfig(name="text", root=str(root), **settings)


def word_tokenizer(folder: Path, pad: str | None = "[PAD]") -> Path:
    """Save a tokenizer of WORDS that puts [CLS] before a text and [SEP] behind it; `pad` is its pad token, if any."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    known = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", known["[CLS]"]), ("[SEP]", known["[SEP]"])]
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | ({"pad_token": pad} if pad else {})
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder
