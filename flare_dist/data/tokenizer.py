"""Tokenizers: bytes, the characters of the papers, or any tokenizer of Hugging Face in a folder.

Hugging Face's libraries are imported only if such a folder is named: pip install 'flare_dist[hf]'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.data.text import CHARACTERS, encode_text
from flare_dist.errors import not_installed, printable, reason, refusal, unknown_choice
from flare_dist.vocabulary import Vocabulary

KEY = "data.tokenizer"

# (texts, length) -> the tokens of each. With a length, texts are cut to it, and the tokenizer's own special tokens
# ([CLS], [SEP], ...) stand around them; with None they are as they are.
Encode = Callable[[Sequence[str], int | None], list[Tensor]]


class Tokenizer(NamedTuple):
    """Turn texts into tokens, of the smallest integer type that holds the vocabulary."""

    name: str
    encode: Encode
    vocabulary: Vocabulary


def open_tokenizer(name: str) -> Tokenizer:
    """Open a tokenizer by its name, or from a folder of Hugging Face's files.

    Raises ValueError that names data.tokenizer if there is no such folder, or if it holds none.
    """
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    if not Path(name).is_dir():
        raise unknown_choice(KEY, name, [*TOKENIZERS, "an existing folder with a Hugging Face tokenizer"])
    return _hugging_face(name)


def located(name: str) -> str:
    """Make the folder of a tokenizer absolute, so that a run can be read from any directory."""
    return str(Path(name).absolute()) if name not in TOKENIZERS and Path(name).is_dir() else name


def smallest_type(size: int) -> torch.dtype:
    """Choose the smallest integer type of tokens 0 to size - 1."""
    types = (torch.uint8, torch.int16, torch.int32)
    return next(dtype for dtype in types if size - 1 <= torch.iinfo(dtype).max)


def _bytes() -> Tokenizer:
    """Take the bytes of UTF-8; 256 is the pad token."""

    def encode(texts: Sequence[str], length: int | None) -> list[Tensor]:
        codes = (torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) for text in texts)
        return [code[:length].to(torch.int16) for code in codes]

    return Tokenizer("bytes", encode, Vocabulary(257, 256))


def _characters() -> Tokenizer:
    """Take the 86 characters of `text.py`, without a pad token."""

    def encode(texts: Sequence[str], length: int | None) -> list[Tensor]:
        return [encode_text(text[:length]) for text in texts]

    return Tokenizer("characters", encode, Vocabulary(len(CHARACTERS)))


def _hugging_face(folder: str) -> Tokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise not_installed(KEY, "transformers", "'flare_dist[hf]'") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever its many formats raise
        raise refusal(KEY, folder, f"holds no tokenizer of Hugging Face ({reason(error)})") from error
    size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
    dtype = smallest_type(size)

    def encode(texts: Sequence[str], length: int | None) -> list[Tensor]:
        whole = length is None
        found = tokenizer(
            list(texts), add_special_tokens=not whole, truncation=not whole, max_length=length, verbose=False
        )
        return [torch.tensor(tokens, dtype=dtype) for tokens in found["input_ids"]]

    return Tokenizer(printable(folder), encode, Vocabulary(size, tokenizer.pad_token_id))


def check_pad(tokenizer: Tokenizer, cause: str) -> int:
    """Return the pad token; ValueError that names data.tokenizer and the setting that needs it if there is none."""
    if tokenizer.vocabulary.pad is None:
        hint = "use bytes" if tokenizer.name in TOKENIZERS else "name one in its tokenizer_config.json, or use bytes"
        raise ValueError(f"{KEY}: {cause} needs a pad token, got {tokenizer.name}, which has none; {hint}")
    return tokenizer.vocabulary.pad


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"bytes": _bytes, "characters": _characters}
