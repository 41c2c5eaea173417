"""Configuration files: the value of each dotted key, and the line in which it stands.

Nothing that is written gets lost: a key or section that stands there twice, an unknown key and a value of another type
are refused with path, line and dotted key. Anchors, aliases and merge keys (`<<: *other`) are YAML's own.
"""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flare_dist.config.values import convert, is_null

SUGGESTIONS = 3
FROM_DICT = "the dict"  # the origin of values that were written as YAML only to be read here: it has no lines
STANDARD_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Document:
    """Hold the content of a file: values by dotted key, and the file and line of each, e.g. "my.yaml:3"."""

    values: dict[str, Any]
    places: dict[str, str]

    def nested(self) -> dict[str, Any]:
        """Return the values as a tree of sections."""
        tree: dict[str, Any] = {}
        for dotted, value in self.values.items():
            *sections, name = dotted.split(".")
            branch = tree
            for section in sections:
                branch = branch.setdefault(section, {})
            branch[name] = value
        return tree


def read_file(path: Path, hints: Mapping[str, Any], section: str = "") -> Document:
    """Read a YAML file with keys of `hints`, dotted key -> type; those of one section, if it is named.

    Raises ValueError with the path, and the line if there is one.
    """
    return read_text(_load(path), hints, str(path), section)


def read_text(text: str, hints: Mapping[str, Any], origin: str, section: str = "") -> Document:
    """Read YAML; messages name `origin` after the key."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            raise ValueError(f"config: {origin}: is empty; write the keys that differ from the defaults, or {{}}")
        if not isinstance(node, yaml.MappingNode):
            what = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            raise ValueError(f"{section or 'config'}: {origin}: expected keys and values, got {what}")
        return _Reader(hints, origin).read(node, section)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"config: {_place(origin, error.problem_mark)}: {_explain(error, text)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"config: {origin}:{line}: is no text: {error.reason}") from error
    except RecursionError as error:
        raise ValueError(f"config: {origin}: is nested too deeply, or an alias contains itself") from error


def suggest(name: str, known: Iterable[str]) -> str:
    """Write "; did you mean ...?" for a mistyped dotted key, or nothing if no known one is like it."""
    known = list(known)
    section, _, leaf = name.lstrip("-").rpartition(".")
    siblings = {key.lstrip("-").split(".")[-1]: key for key in known if key.lstrip("-").rpartition(".")[0] == section}
    longer = [key for key in known if key.startswith(name)]
    elsewhere = [key for key in known if key.lstrip("-").split(".")[-1] == leaf]
    similar = [siblings[match] for match in difflib.get_close_matches(leaf, siblings, 1)]
    best = (longer or elsewhere or similar or difflib.get_close_matches(name, known, 1, 0.8))[:SUGGESTIONS]
    return f"; did you mean {' or '.join(best)}?" if best else ""


class _Reader:
    """Read the nodes of a file in one pass."""

    def __init__(self, hints: Mapping[str, Any], origin: str) -> None:
        self.hints = hints
        self.origin = origin
        self.sections = {key[:end] for key in hints for end, letter in enumerate(key) if letter == "."}

    def read(self, node: yaml.MappingNode, section: str) -> Document:
        values: dict[str, Any] = {}
        places: dict[str, str] = {}
        for dotted, value, place in self._leaves(node, f"{section}." if section else ""):
            if dotted in values:
                raise ValueError(f"{dotted}: {place}: is written twice, at {places[dotted]} as well; remove one")
            places[dotted] = place
            try:
                values[dotted] = convert(self.hints[dotted], value)
            except ValueError as error:
                raise ValueError(f"{dotted}: {place}: {error}{_hint(value)}") from error
        return Document(values, places)

    def _leaves(self, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node, str]]:
        for name, (key, value) in self._keys(node, prefix).items():
            dotted = prefix + name
            place = _place(self.origin, key.start_mark)
            if not value.tag.startswith(STANDARD_TAG) or value.tag.startswith(f"{STANDARD_TAG}python"):
                raise ValueError(f"{dotted}: {place}: the tag {value.tag} is not known here; leave it out")
            if dotted in self.hints:
                yield dotted, value, place
            elif dotted not in self.sections:
                known = [*self.hints, *self.sections]
                raise ValueError(f"{dotted}: {place}: there is no such key{suggest(dotted, known)}")
            elif isinstance(value, yaml.MappingNode):
                yield from self._leaves(value, f"{dotted}.")
            else:
                got = "nothing" if is_null(value) else "a value"
                remedy = "write keys below it, or leave it out for the defaults"
                raise ValueError(f"{dotted}: {place}: expected keys and values, got {got}; {remedy}")

    def _keys(self, node: yaml.MappingNode, prefix: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Collect key and value nodes by name; a key that is written wins over one that a merge key brings."""
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            place = _place(self.origin, key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{prefix or 'config'}: {place}: a key must be a word, got keys or a list")
            if key.value in found:
                before = _place(self.origin, found[key.value][0].start_mark)
                raise ValueError(f"{prefix}{key.value}: {place}: is written twice, at {before} as well; join the two")
            found[key.value] = (key, value)
            if key.tag == f"{STANDARD_TAG}merge":
                for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(other, yaml.MappingNode):
                        raise ValueError(f"{prefix}<<: {place}: expected an alias of keys and values")
                    merged = self._keys(other, prefix) | merged
        found = {name: pair for name, pair in found.items() if pair[0].tag != f"{STANDARD_TAG}merge"}
        return found | {name: pair for name, pair in merged.items() if name not in found}


def _load(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"config: {path}: cannot be read: {error.strerror}") from error
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"config: {path}:{line}: is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error


def _place(origin: str, mark: Any) -> str:
    return origin if mark is None or origin == FROM_DICT else f"{origin}:{mark.line + 1}"


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    """Describe what is wrong with a file that is not YAML, and the usual reason."""
    problem = error.problem or "is not YAML"
    if "another document" in problem:
        return "expected a single document, got a second one after ---; make two files of it"
    mark = error.problem_mark
    lines = text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    context = f"{error.context}: " if error.context else ""
    return f"is not YAML: {context}{problem}{'; indent with spaces, not tabs' if chr(9) in line else ''}"


def _hint(value: yaml.Node) -> str:
    """Suggest what to do about a value of the wrong type, if that is plain."""
    if not isinstance(value, yaml.ScalarNode):
        return ""
    if value.style in ("'", '"'):
        return "; write it without quotation marks"
    return "" if value.value else "; write a value, or leave the line out for the default"
