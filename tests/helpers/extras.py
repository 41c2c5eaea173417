"""Tests that need an extra are skipped without it, and the end of a run says so in a line; in CI that is a failure."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterable

import pytest

EXTRA_OF = {  # library -> extra of setup.cfg
    **dict.fromkeys(("matplotlib", "plotly", "jinja2"), "plots"),
    **dict.fromkeys(("transformers", "peft", "tokenizers"), "hf"),
    **dict.fromkeys(("onnx", "onnxscript"), "onnx"),
    **dict.fromkeys(("sphinx", "myst_nb", "furo", "latex2mathml", "ziamath"), "docs"),
    **dict.fromkeys(("pandas", "datasets", "onnxruntime", "nbformat", "nbclient", "ipykernel"), "test"),
    **{name: name for name in ("lightning", "wandb", "mlflow")},
}
_REASON = re.compile(r"could not import '(\w+)|(\w+) is not installed")
_EXTRA = re.compile(r"needs the extra (\w+)")


def needs(extra: str) -> pytest.MarkDecorator:
    """Skip a test, or as `pytestmark` a file of tests, if a library of `extra` is missing."""
    libraries = [library for library, own in EXTRA_OF.items() if own == extra]
    missing = [library for library in libraries if not importlib.util.find_spec(library)]
    return pytest.mark.skipif(bool(missing), reason=f"{(missing or libraries)[0]} is not installed")


def missing_extras(reasons: Iterable[str]) -> Counter[str]:
    """Count by extra the tests that were skipped for want of it, given why each test was skipped."""
    return Counter(filter(None, map(_extra, reasons)))


def _extra(reason: str) -> str | None:
    """Read from the reason of a skip which extra was missing; None if it was something else."""
    library = _REASON.search(reason)
    if library:
        return EXTRA_OF.get(library[1] or library[2])
    extra = _EXTRA.search(reason)
    return extra and extra[1]


def in_a_line(missing: Counter[str]) -> str:
    """Say what was skipped, and what to install."""
    counts = ", ".join(f"{extra} ({count})" for extra, count in sorted(missing.items()))
    names = ",".join(sorted(missing.keys() | {"test"}))
    return f"skipped for want of extras: {counts}; pip install --editable '.[{names}]' runs them"
