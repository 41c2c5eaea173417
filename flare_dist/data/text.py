"""Texts of many speakers on the disk, in the layout of LEAF or TensorFlow Federated, cut into sequences.

    root/train/*.json   {"user_data": {speaker: {...}}}, and root/test/*.json with later texts of the same speakers

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
from flare_dist.errors import printable, reason, refusal

# The 86 characters of TensorFlow Federated's Shakespeare models; a character that is none of them counts as a space.
CHARACTERS = " " + string.ascii_letters + string.digits + "\n\r!\"#$%&'()*,-./:;?@[]_"
_CODES = {character: code for code, character in enumerate(CHARACTERS)}


def encode_text(text: str) -> Tensor:
    """Encode a text as uint8 codes, one for each character."""
    return torch.tensor([_CODES.get(character, 0) for character in text], dtype=torch.uint8)


def load_texts(root: Path, sequence_length: int) -> tuple[Examples, Examples]:
    """Load (train, test): inputs uint8 [n, sequence_length], labels the characters that follow, groups the speakers.

    A speaker's text is cut into runs of sequence_length + 1 characters; what is left over at the end of it is not used.
    Raises ValueError that names data.root if files are missing or of neither layout, and data.sequence_length if every
    text is shorter.
    """
    speakers: dict[str, int] = {}
    train, test = (_examples(root, part, sequence_length, speakers) for part in ("train", "test"))
    return train, test


def _examples(root: Path, part: str, length: int, speakers: dict[str, int]) -> Examples:
    rows = []
    groups = []
    for speaker, text in _texts(root / part):
        group = speakers.setdefault(speaker, len(speakers))
        codes = encode_text(text)
        runs = codes[: len(codes) // (length + 1) * (length + 1)].view(-1, length + 1)
        rows.append(runs)
        groups += [group] * len(runs)
    if not groups:
        problem = f"no speaker in {printable(root / part)} has {length + 1} characters"
        raise ValueError(f"data.sequence_length: {problem}, got {length}; choose less")
    sequences = torch.cat(rows)
    return Examples(sequences[:, :-1].contiguous(), sequences[:, 1:].long(), torch.tensor(groups), is_text=True)


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (speaker, their whole text) from every file of a folder, in order of the files' names."""
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if not files:
        raise refusal(
            "data.root", folder, "there are no .json files in it" if folder.is_dir() else "there is no such folder"
        )
    said_in: dict[str, Path] = {}
    for file in files:
        try:
            # From bytes, since json tells UTF-8 with or without its mark from UTF-16 itself.
            found = json.loads(file.read_bytes(), object_pairs_hook=_distinct)["user_data"]
            texts = {speaker: _text(own) for speaker, own in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise refusal("data.root", file, f"is not in LEAF's or TFF's layout ({reason(error)})") from error
        for speaker, text in texts.items():
            if speaker in said_in:
                raise refusal(
                    "data.root",
                    file,
                    f"{printable(speaker)} speaks in {printable(said_in[speaker])} too; are they copies?",
                )
            said_in[speaker] = file
            yield speaker, text


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON; ValueError if a name comes twice, for json would silently drop the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{printable(twice)} comes twice in it")
    return found


def _text(own: dict[str, Any]) -> str:
    """Put one speaker's text together: snippets one after another, or windows that overlap."""
    if "snippets" in own:
        return "".join(own["snippets"])
    text = tail = ""
    for window, following in zip(own["x"], own["y"], strict=True):
        if len(following) != 1:
            raise ValueError(f"{following!r} is not one character")
        text += following if window == tail else window + following
        tail = (window + following)[1:]
    return text
