"""Read the texts of a data set from the disk: files of JSON lines, or folders of .txt.

    {"text": "To be, or not", "label": "tragedy", "group": "hamlet/HAMLET"}     a line for each text, in *.jsonl
    <name>/*.txt                                                     a file for each text of a class, or of a group

A root is one file, a folder of such files, or a folder with train and test (and validation), each a folder or a file.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flare_dist.data.names import MEANT
from flare_dist.data.scan import count_in_words, is_hidden, walk
from flare_dist.errors import printable, reason, refusal
from flare_dist.units import counted

log = logging.getLogger(__name__)

KEY = "data.root"
PARTS = ("train", "test", "validation")
JSON_LINES = (".jsonl", ".ndjson")
TXT = ".txt"
LAYOUT = "*.jsonl or <name>/*.txt, or train and test of such"

Name = str | int


class Text(NamedTuple):
    """Hold one text, its class and its group (None = not given), and the line or file it stands in."""

    text: str
    label: Name | None
    group: Name | None
    file: Path
    line: int | None = None  # from 1; None = the text is the file


def read_documents(root: Path, by_class: bool) -> dict[str, list[Text]]:
    """Read the texts of each part by its name, of a root that is not divided as train alone; without empty ones.

    A .txt file's folder is its class if `by_class`, else its group; of files beside the folders each is a group.
    Raises ValueError that names data.root and the file, and the line, if there are no texts or they cannot be read.
    """
    places = _parts(root)
    found = {}
    for part, place in places.items():
        texts = list(_texts(place, by_class))
        found[part] = [text for text in texts if text.text.strip()]
        if not found[part]:
            raise refusal(KEY, place, "has no texts" + ("; all are empty" if texts else f"; it should hold {LAYOUT}"))
        if len(found[part]) < len(texts):
            empty = counted(len(texts) - len(found[part]), "empty text")
            log.info("%s: %s: left out %s", KEY, printable(place), empty)
    return found


def column(texts: Sequence[Text], field: str) -> list[Any] | None:
    """Return the label or the group of each text; None if no text has one.

    Raises ValueError that names the first text without one, or of another type than the others.
    """
    values = [getattr(text, field) for text in texts]
    if all(value is None for value in values):
        return None
    kind = type(next(value for value in values if value is not None))
    for text, value in zip(texts, values):
        if value is None:
            raise refusal(KEY, text.file, f"{_line(text.line)}has no {field}, and others have; give all of them one")
        if type(value) is not kind:
            names = f"{type(value).__name__} beside {kind.__name__}"
            raise refusal(KEY, text.file, f"{_line(text.line)}{field} must be of one type in all, got {names}")
    return values


def numbers(values: Sequence[Name], names: Sequence[Name]) -> Tensor:
    """Number each value by its place among `names`: int64."""
    place = {name: number for number, name in enumerate(names)}
    return torch.tensor([place[value] for value in values])


def _parts(root: Path) -> dict[str, Path]:
    """Find the parts of a root; ValueError if there is nothing, or train without test."""
    if not root.exists():
        raise refusal(KEY, root, f"there is no such file or folder; it should hold {LAYOUT}")
    if root.is_file():
        return {"train": root}
    choices = {part: [root / part, *(root / f"{part}{suffix}" for suffix in JSON_LINES)] for part in PARTS}
    found = {part: next((place for place in places if place.exists()), None) for part, places in choices.items()}
    parts = {part: place for part, place in found.items() if place is not None}
    if not parts:
        return {"train": root}
    _refuse_other_names(root)
    for needed in ("train", "test"):
        if needed not in parts:
            raise refusal(KEY, root, f"has {next(iter(parts))} but no {needed}; it should hold {LAYOUT}")
    return parts


def _refuse_other_names(root: Path) -> None:
    """Raise ValueError if a folder or a file beside the parts has another name of a part."""
    for place in sorted(root.iterdir()):
        is_lines = place.suffix.lower() in JSON_LINES
        name = (place.stem if is_lines else place.name).casefold()
        part = next((part for part, others in MEANT.items() if name in others), None)
        if part and (is_lines or place.is_dir()):
            old, new = (place.name, part + place.suffix) if is_lines else (f"{place.name}/", f"{part}/")
            known = f"is no part of the data, for parts are {', '.join(PARTS)}"
            raise refusal(KEY, place, f"{known}; rename {printable(old)} to {new}")


def _texts(place: Path, by_class: bool) -> Iterator[Text]:
    files = [place] if place.is_file() else [Path(folder, name) for folder, names in walk(str(place)) for name in names]
    visible = [file for file in files if not is_hidden(file.name)]
    kinds = {file: file.suffix.lower() for file in visible}
    lines = [file for file in visible if kinds[file] in JSON_LINES]
    plain = [file for file in visible if kinds[file] == TXT]
    if lines and plain:
        both = f"holds {printable(lines[0].name)} and {printable(plain[0].name)}; keep files of one kind"
        raise refusal(KEY, place, both)
    others = Counter(kind or "without suffix" for file, kind in kinds.items() if kind not in (*JSON_LINES, TXT))
    if others:
        log.info("%s: %s: left out %s", KEY, printable(place), count_in_words(others))
    for file in lines:
        yield from _json_lines(file)
    for file in plain:
        folders = file.relative_to(place).parts[:-1] if file != place else ()
        folder = folders[0] if folders else None
        group = None if by_class or file == place else folder or file.stem
        yield Text(_decoded(file), folder if by_class else None, group, file)


def _json_lines(file: Path) -> Iterator[Text]:
    for number, line in enumerate(_decoded(file).split("\n"), 1):  # splitlines() would cut at U+2028 within a text
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise refusal(KEY, file, f"line {number}: is not JSON ({reason(error)})") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            got = ", ".join(map(printable, row)) or "nothing" if isinstance(row, dict) else type(row).__name__
            raise refusal(KEY, file, f'line {number}: must be an object with a string "text", got {got}')
        for field in ("label", "group"):
            value = row.get(field)
            if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
                problem = f"{field} must be a string or an integer, got {type(value).__name__}"
                raise refusal(KEY, file, f"line {number}: {problem}")
        yield Text(_encodable(row["text"]), row.get("label"), row.get("group"), file, number)


def _decoded(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        hint = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise refusal(KEY, file, f"{reason(error)}{hint}") from error


def _encodable(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _line(line: int | None) -> str:
    return "" if line is None else f"line {line}: "
