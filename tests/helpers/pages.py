"""Read the pages of the built site, and the blocks of its sources."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
SOURCES = sorted(path for path in DOCS.rglob("*.md") if "build" not in path.parts)
DOCUMENTS = [ROOT / "README.md", *SOURCES]


class Page(HTMLParser):
    """What one page links to, fetches and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []  # of the article, and of the sidebar's first level, which is always open
        self.ids: set[str] = set()
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self._level = ""
        self._skipped = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.tags.append(tag)
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "li" and "toctree-l" in found.get("class", ""):
            self._level = found["class"]
        if tag == "article":
            self._level = ""
        if tag == "a" and "href" in found and "toctree-l2" not in self._level:
            self.links.append(found["href"])
        sources = {"link": "href", "object": "data"}
        if tag in ("script", "img", "source", "iframe", "video", "audio", "embed", "link", "object"):
            self.fetched.append(found.get(sources.get(tag, "src"), ""))
            self.fetched.extend(part.split()[0] for part in found.get("srcset", "").split(",") if part.strip())
        self._skipped += tag in ("script", "style", "pre", "code")

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in ("script", "style", "pre", "code")

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.text.append(data)


class Command(NamedTuple):
    """A line of a shell block, joined if it goes on in the next one; `needs` is what it needs besides the package."""

    document: str
    line: str
    needs: str


def commands(path: Path) -> Iterator[Command]:
    """Yield the commands of a document; a comment `# needs ...` behind one says which hardware or data it needs."""
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            command, _, comment = line.partition(" #")
            if command.strip() and not command.lstrip().startswith("#"):
                needs = re.search(r"\bneeds? (.*)", comment)
                yield Command(path.relative_to(ROOT).as_posix(), command.strip(), needs[1] if needs else "")


def python_blocks(path: Path) -> list[str]:
    """Return the blocks of Python in a document."""
    return re.findall(r"^```py(?:thon)?\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
