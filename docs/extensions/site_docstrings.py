"""Read docstrings as the plain text that they are: `code` is literal, an indented block is an example, * is a star."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite the lines of a docstring in place, before napoleon reads its Args."""
    found: list[str] = []
    is_example = False
    for line in lines:
        is_indented = line.startswith("    ")
        begins = is_indented and bool(found) and not found[-1].strip() and not is_example
        if begins:
            found += ["::", ""]
            is_example = True
        elif line.strip() and not is_indented:
            is_example = False
        found.append(line if is_example else _escaped(line))
    lines[:] = found


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(
        f"`{part}`" if part.startswith("`") else part.replace("*", r"\*").replace("_ ", r"\_ ") for part in parts
    )


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", as_rst, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
