"""Configure the site: Sphinx reads Markdown with MyST, Furo lays it out, and nothing is fetched when a page is read."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

project = "flare_dist"
author = "the flare_dist authors"
project_copyright = author
release = version = importlib.metadata.version("flare_dist")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += [path.stem for path in sorted((HERE / "extensions").glob("site_*.py"))]
exclude_patterns = ["extensions", "README.md"]
suppress_warnings = ["config.cache"]
# A style of Pygments that Furo brings prints what every library logs; a first build would tell of a cache of fonts.
logging.getLogger("matplotlib").setLevel(logging.WARNING)

# Prose: GitHub shows the same files, so links are relative and headings have GitHub's anchors.
myst_enable_extensions = ["dollarmath", "deflist", "fieldlist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/test_notebook.py runs the notebook; the page shows what is committed
nb_render_image_options = {"alt": "a figure of the notebook"}

highlight_language = "none"  # of blocks that name no language

# Python: signatures as they are written; names of other libraries have no page here.
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
# The callbacks are described without the libraries that they are for, if those are not installed.
autodoc_mock_imports = [name for name in ("transformers", "lightning") if importlib.util.find_spec(name) is None]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]

html_theme = "furo"
html_title = f"flare_dist {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
