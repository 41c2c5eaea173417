"""Which file and line, or which argument, set a key: errors name it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flare_dist.config.yaml_file import SUGGESTIONS, Document

OF_SECTION = re.compile(r"(?<![\w.-])[a-z_]+(?:\.[a-z_]+)+")  # keys within a message


class Origins:
    """Remember which file or argument sets which key of one command line.

    Attributes:
        files: the configuration files that were read, in order.
        places: dotted key -> file and line of the last file that sets it, e.g. "my.yaml:3".
        arguments: dotted keys that arguments set, which win over files.
    """

    def __init__(self, hints: Mapping[str, Any]) -> None:
        self._hints = hints  # dotted key -> type
        self.files: list[str] = []
        self.places: dict[str, str] = {}
        self.arguments: set[str] = set()

    def add_file(self, path: str, document: Document) -> None:
        """Lay a file over those before it."""
        self.files.append(path)
        self.places |= document.places

    def add_arguments(self, keys: Iterable[str]) -> None:
        self.arguments |= set(keys)

    def locate(self, message: str) -> str:
        """Put the file and the line into a message that begins with a key, if a file set it."""
        named, colon, problem = message.partition(": ")
        # An option below options stands where these do.
        key = next((known for known in self._hints if named.startswith(f"{known}.")), named)
        is_key = key in self._hints or any(known.startswith(f"{key}.") for known in self._hints)
        if not colon or not is_key or any(file in message for file in self.files):
            return message
        others = self._others(key, problem)
        if key in self.places and key not in self.arguments:
            return f"{named}: {self.places[key]}: {problem}{others}"
        if key in self.arguments or others or not self.files:
            return f"{message}{others}"
        leave = "leaves" if len(self.files) == 1 else "leave"
        default = f", which {leave} this key at its default" if key in self._hints else ""
        return f"{message} (configured by {', '.join(self.files)}{default})"

    def _others(self, key: str, problem: str) -> str:
        """Name the places of the other keys in a message, since another file may have set them."""
        in_files = self.places.keys() - self.arguments - {key}
        named = [other for other in dict.fromkeys(OF_SECTION.findall(problem)) if other in in_files]
        return "".join(f"; {other} is set at {self.places[other]}" for other in named[:SUGGESTIONS])
