"""Point links out of docs/ at the file itself, in text: the site holds no copy of the repository.

A link to a file of the repository that is no page, ../examples/lora.py, stays right on GitHub. In the site it becomes
the path, so that no link of a page opened from a disk leads nowhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parent.parent.parent


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(PathsOfFiles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class PathsOfFiles(SphinxTransform):
    """Replace downloads of files outside docs/ by their paths."""

    default_priority = 1

    def apply(self, **kwargs: Any) -> None:
        here = Path(self.env.doc2path(self.env.docname)).parent
        for node in list(self.document.findall(addnodes.download_reference)):
            target = Path(os.path.normpath(here / node["reftarget"]))
            if target.is_relative_to(ROOT) and not target.is_relative_to(ROOT / "docs") and target.exists():
                path = target.relative_to(ROOT).as_posix()
                text = node.astext()
                shown = [] if text in (path, target.name) else [nodes.Text(f"{text}, ")]
                node.replace_self([*shown, nodes.literal(text=path)])
