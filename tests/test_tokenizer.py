"""Texts become tokens and come back; folders of Hugging Face's tokenizers are read without a network."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_dist.data.config import DataConfig
from flare_dist.data.text import CHARACTERS
from flare_dist.data.tokenizer import check_pad, open_tokenizer, smallest_type
from flare_dist.records.resume import resolve
from flare_dist.vocabulary import Vocabulary
from tests.helpers.runs import tiny
from tests.helpers.texts import word_tokenizer

TEXTS = ["To be, or not to be", "caf\u00e9 \u2028 \U0001f600", "x"]


def test_bytes_come_back_as_the_text() -> None:
    tokenizer = open_tokenizer("bytes")
    assert tokenizer.vocabulary == Vocabulary(257, 256)
    for text, tokens in zip(TEXTS, tokenizer.encode(TEXTS, None)):
        assert bytes(tokens.tolist()).decode() == text
    assert [len(tokens) for tokens in tokenizer.encode(TEXTS, 5)] == [5, 5, 1]


def test_characters_are_those_of_the_papers() -> None:
    tokenizer = open_tokenizer("characters")
    assert tokenizer.vocabulary == Vocabulary(86, None)
    (tokens,) = tokenizer.encode(["Out, out!"], None)
    assert "".join(CHARACTERS[token] for token in tokens) == "Out, out!"
    with pytest.raises(ValueError, match=r"^data\.tokenizer: x=y needs a pad token, got characters, .* use bytes$"):
        check_pad(tokenizer, "x=y")


@pytest.mark.parametrize(("size", "dtype"), [(256, torch.uint8), (257, torch.int16), (32768, torch.int16)])
def test_tokens_are_of_the_smallest_type(size: int, dtype: torch.dtype) -> None:
    assert smallest_type(size) == dtype
    assert torch.tensor([size - 1], dtype=dtype).item() == size - 1
    assert smallest_type(32769) == torch.int32


def test_a_folder_of_hugging_face_is_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(str(word_tokenizer(tmp_path)))
    assert tokenizer.vocabulary == Vocabulary(8, 0)
    assert [tokens.tolist() for tokens in tokenizer.encode(["alpha beta", "delta else"], None)] == [[4, 5], [7, 1]]
    # Cut to four, the special tokens stay.
    assert tokenizer.encode(["alpha beta gamma delta"], 4)[0].tolist() == [2, 4, 5, 3]
    assert tokenizer.encode(["alpha"], 4)[0].dtype == torch.uint8


def test_a_tokenizer_without_a_pad_token_is_refused_if_it_is_needed(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(str(word_tokenizer(tmp_path, pad=None)))
    assert tokenizer.vocabulary.pad is None
    with pytest.raises(
        ValueError, match=r"^data\.tokenizer: x=y needs a pad token, got .*; name one in its tokenizer_c"
    ):
        check_pad(tokenizer, "x=y")


def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^data\.tokenizer: unknown choice, got 'byte'; did you mean bytes\? Choose from bytes, characters, ",
    ):
        open_tokenizer("byte")
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"^data\.tokenizer: .*: holds no tokenizer of Hugging Face \(") as caught:
        open_tokenizer(str(tmp_path))
    assert str(caught.value).isprintable()


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'")
        return find(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"^data\.tokenizer: transformers is not .* 'flare_dist\[hf\]'$"):
        open_tokenizer(str(tmp_path))


def test_the_folder_of_a_tokenizer_is_saved_from_the_root_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tok", "bytes"):
        (tmp_path / name).mkdir()
    for name, expected in (("tok", str(tmp_path / "tok")), ("bytes", "bytes"), ("none", "none")):
        config, _ = resolve(tiny(tmp_path / "run", data=DataConfig(name="text", tokenizer=name)), 1)
        assert config.data.tokenizer == expected
