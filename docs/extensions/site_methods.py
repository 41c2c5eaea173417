"""Make the parts of a method's page from the module that implements it, so that they cannot drift.

``{from-module} module``        what it is, the paper with a link, and where the code is; from the module's docstring
``{rest-of-docstring} module``  the rest of that docstring, as it stands in the code
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PAPER = re.compile(
    r'^(?P<authors>[^"]+),\s+"(?P<title>[^"]+)",\s+(?P<where>.*?),?\s*(?P<link>https?://[^\s,]+)(?P<rest>.*)$',
    re.DOTALL,
)


class Described(NamedTuple):
    """The docstring of a module in parts: what it is, its paper, and the rest."""

    summary: str
    paper: re.Match[str] | None
    rest: str


def described(name: str) -> Described:
    """Read a module's docstring; a paragraph of authors, title and link is its paper."""
    module = import_module(name)
    if not module.__doc__:
        raise ValueError(f"{name} has no docstring")
    summary, *paragraphs = module.__doc__.strip().split("\n\n")
    paper = None
    rest = []
    for paragraph in paragraphs:
        found = PAPER.match(" ".join(paragraph.split())) if not paragraph.startswith(" ") else None
        if found and paper is None:
            paper = found
        else:
            rest.append(paragraph)
    return Described(" ".join(summary.split()), paper, "\n\n".join(rest))


class Method(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        self.env.note_dependency(str(import_module(name).__file__))
        summary, paper, _ = described(name)
        lead = nodes.paragraph(classes=["lead"])
        lead += nodes.Text(summary)
        source = nodes.paragraph(classes=["source"])
        if paper:
            source += nodes.Text(f"{paper['authors']}: ")
            source += nodes.reference(text=paper["title"], refuri=paper["link"], internal=False)
            source += nodes.Text(f", {paper['where']}{paper['rest'].rstrip('.')}. ")
        source += [nodes.Text("Code: "), nodes.literal(text=f"{name.replace('.', '/')}.py")]
        return [lead, source]


class Notes(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        rest = described(name).rest
        if not rest:
            raise self.error(f"the docstring of {name} has nothing besides its summary and paper")
        return [nodes.container("", nodes.literal_block(rest, rest, language="none"), classes=["docstring"])]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("from-module", Method)
    app.add_directive("rest-of-docstring", Notes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
