"""Texts of the AdamW study as tensors of codes: characters, or tokens of a byte-pair encoding learnt on the spot."""

from __future__ import annotations

import json
import string
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

CHARACTERS = string.printable
BPE_VOCABULARY = 4096
_CODES = {character: code for code, character in enumerate(CHARACTERS)}
_SPACE = _CODES[" "]


def shakespeare(directory: Path) -> str:
    """Read what all roles of the plays say, one role after another, from DIR/shakespeare/roles.jsonl."""
    with (directory / "shakespeare" / "roles.jsonl").open(encoding="utf-8") as file:
        return "\n\n".join(json.loads(line)["text"] for line in file)


def standard_library() -> str:
    """Read the modules of Python's own library, without packages, in the order of their names."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "\n\n".join(module.read_text(encoding="utf-8", errors="replace") for module in modules)


def by_character(text: str) -> Tensor:
    """Encode each character; what is not printable ASCII counts as a space."""
    return torch.tensor([_CODES.get(character, _SPACE) for character in text])


def by_pairs(text: str, learnt_from: str) -> Tensor:
    """Encode a text by byte pairs, of which BPE_VOCABULARY are learnt from another; it needs `pip install tokenizers`.

    Both are given line by line, for the library is slow on one long text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(learnt_from.splitlines(keepends=True), trainer)
    encoded = tokenizer.encode_batch(text.splitlines(keepends=True))
    return torch.tensor([code for line in encoded for code in line.ids])
