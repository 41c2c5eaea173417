"""Texts of many speakers on the disk, as LEAF and TensorFlow Federated share them out, cut into sequences.

    root/train/*.json   {"user_data": {speaker: {...}}}, and root/test/*.json with what the same speakers say later

LEAF gives each speaker windows, {"x": ["To be, o", "o be, or"], "y": ["r", " "]}, which are put together again;
TensorFlow Federated gives {"snippets": ["To be, or not ..."]}.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flare_dist.data.examples import Examples

# The 86 characters of TensorFlow Federated's Shakespeare models; a character that is none of them counts as a space.
CHARACTERS = " " + string.ascii_letters + string.digits + "\n\r!\"#$%&'()*,-./:;?@[]_"
_CODES = {character: code for code, character in enumerate(CHARACTERS)}


def encode_text(text: str) -> Tensor:
    """uint8 codes, one for each character."""
    return torch.tensor([_CODES.get(character, 0) for character in text], dtype=torch.uint8)


def load_texts(root: Path, sequence_length: int) -> tuple[Examples, Examples]:
    """(train, test): inputs uint8 [n, sequence_length], labels the characters that follow each, groups the speakers.

    A speaker's text is cut into runs of sequence_length + 1 characters; what is left over at the end of it is not used.
    Raises ValueError that names data.root where files are missing or not of either layout, and data.sequence_length
    where nobody says as much.
    """
    speakers: dict[str, int] = {}
    train, test = (_examples(root, part, sequence_length, speakers) for part in ("train", "test"))
    return train, test


def _examples(root: Path, part: str, length: int, speakers: dict[str, int]) -> Examples:
    rows, groups = [], []
    for speaker, text in _texts(root / part):
        group = speakers.setdefault(speaker, len(speakers))
        codes = encode_text(text)
        runs = codes[: len(codes) // (length + 1) * (length + 1)].view(-1, length + 1)
        rows.append(runs)
        groups += [group] * len(runs)
    if not groups:
        raise ValueError(f"data.sequence_length: no speaker in {root / part} says {length + 1} characters")
    sequences = torch.cat(rows)
    return Examples(sequences[:, :-1].contiguous(), sequences[:, 1:].long(), torch.tensor(groups))


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    """(speaker, all that they say) from every file of a folder, in order of the files' names."""
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if not files:
        raise ValueError(f"data.root: there are no .json files in {folder}")
    for file in files:
        try:
            for speaker, own in json.loads(file.read_text(encoding="utf-8-sig"))["user_data"].items():
                yield speaker, _text(own)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"data.root: {file} is not in LEAF's or TFF's layout ({error!r})") from error


def _text(own: dict[str, Any]) -> str:
    """What one speaker says: snippets one after another, or windows that overlap, put together."""
    if "snippets" in own:
        return "".join(own["snippets"])
    text, tail = "", ""
    for window, following in zip(own["x"], own["y"], strict=True):
        if len(following) != 1:
            raise ValueError(f"{following!r} is not one character")
        text += following if window == tail else window + following
        tail = (window + following)[1:]
    return text
