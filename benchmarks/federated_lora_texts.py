"""The data of the federated LoRA study: short descriptions of Debian packages, by section, held by their maintainers.

What apt knows of is parsed (`apt-get update` brings it, without installing anything). A text is the first line of a
description, its label the Section, its group the Maintainer. Clients are the maintainers of at least 200 packages. Of
packages with the same text, however it is spaced or capitalised, the first alone is kept, and packages of one source
are all in the same part, for they are described alike.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

PARTS = ("train", "validation", "test")
LEAST_PACKAGES = 200  # of a maintainer who is a client

Parts = dict[str, dict[str, list["Package"]]]  # by part and by client


class Package(NamedTuple):
    """Hold what is read of a package."""

    name: str
    source: str
    maintainer: str
    section: str
    description: str


def known_to_apt() -> str:
    """Print the lists of apt, bringing them first if there are none."""
    found = _output("apt-cache", "dumpavail")
    if not found.strip():
        _output("apt-get", "update")
        found = _output("apt-cache", "dumpavail")
    if not found.strip():
        raise SystemExit("apt knows of no packages; run apt-get update, as root")
    return found


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def packages(lists: str) -> Iterator[Package]:
    """Parse stanzas of Debian's control format; one that lacks a field that is needed is left out."""
    for stanza in lists.split("\n\n"):
        fields: dict[str, str] = {}
        for line in stanza.split("\n"):
            name, colon, value = line.partition(": ")
            if colon and not name[:1].isspace():
                fields[name] = value.strip()
        if {"Package", "Maintainer", "Section", "Description"} <= fields.keys():
            source = fields.get("Source", fields["Package"]).split()[0]  # "name (version)"
            section = fields["Section"].rpartition("/")[2]  # of contrib/net, net
            yield Package(fields["Package"], source, fields["Maintainer"], section, fields["Description"])


def parted(found: Iterable[Package]) -> Parts:
    """Divide each client's packages into test, a fifth, validation, a fifth of the rest, and train.

    They are in an order drawn by hash, so that the first so many are a sample.
    """
    every = sorted(found)
    held = Counter(package.maintainer for package in every)
    parts: Parts = {part: {} for part in PARTS}
    for client, own in _by(_distinct(every), "maintainer").items():
        if held[client] >= LEAST_PACKAGES:
            parts["test"][client], rest = _held_out(own)
            parts["validation"][client], parts["train"][client] = _held_out(rest)
    return parts


def _held_out(own: Sequence[Package]) -> tuple[list[Package], list[Package]]:
    """Hold out a fifth of the packages, in whole sources, chosen by hash; returns it, and what is left."""
    room = len(own) // 5
    held: list[Package] = []
    rest: list[Package] = []
    sources = _by(own, "source")
    for source in sorted(sources, key=_hash):
        fits = len(held) + len(sources[source]) <= room
        (held if fits else rest).extend(sources[source])
    return sorted(held, key=_order), sorted(rest, key=_order)


def _by(found: Iterable[Package], field: str) -> dict[str, list[Package]]:
    divided: dict[str, list[Package]] = {}
    for package in found:
        divided.setdefault(getattr(package, field), []).append(package)
    return divided


def _distinct(found: Iterable[Package]) -> list[Package]:
    """Keep the first package of those with one text."""
    firsts: dict[str, Package] = {}
    for package in found:
        firsts.setdefault(" ".join(package.description.casefold().split()), package)
    return list(firsts.values())


def _order(package: Package) -> int:
    return _hash(package.name)


def _hash(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def write(parts: Parts, most: Sequence[int | None], folder: Path) -> None:
    """Write a file of JSON lines for each part, with at most so many examples of each client."""
    folder.mkdir(parents=True, exist_ok=True)
    for (part, clients), number in zip(parts.items(), most, strict=True):
        chosen = [package for name in sorted(clients) for package in clients[name][:number]]
        lines = [json.dumps({"text": p.description, "label": p.section, "group": p.maintainer}) for p in chosen]
        (folder / f"{part}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def described(folder: Path) -> str:
    """Count clients, classes and the examples of each part that were written, and name them by a digest."""
    written = {part: (folder / f"{part}.jsonl").read_bytes() for part in PARTS}
    rows = {part: [json.loads(line) for line in lines.splitlines()] for part, lines in written.items()}
    clients = {row["group"] for row in rows["train"]}
    classes = {row["label"] for own in rows.values() for row in own}
    examples = "/".join(str(len(own)) for own in rows.values())
    digest = sha256(b"".join(written.values())).hexdigest()
    return f"{len(clients)} clients {len(classes)} classes {examples} examples {digest[:8]}"
