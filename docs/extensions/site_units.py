"""Keep a number and its unit on one line: 1 % and 84 kB are written with a space, at which a browser would break."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:%|(?:[kMGT]i?)?B|m?s|h|x|[MG]bit|[kMG]bps)(?!\w))")
LITERAL = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(UnbrokenUnits)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def unbroken(text: str) -> str:
    """Replace the space between a number and its unit by one that does not break."""
    return BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)


class UnbrokenUnits(SphinxTransform):
    """Write prose so that no line ends between a number and its unit."""

    default_priority = 900

    def apply(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(nodes.Text)):
            if not isinstance(node.parent, LITERAL) and unbroken(node) != node:
                node.parent.replace(node, nodes.Text(unbroken(node)))
