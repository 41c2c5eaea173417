"""Extras are complete, and tests that were skipped for want of one are counted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.extras import EXTRA_OF, in_a_line, missing_extras
from tests.test_packaging import ROOT, extras, names_of

OF_USERS = {"plots", "hf", "onnx", "wandb", "mlflow", "lightning"}


def test_all_is_every_extra_of_users() -> None:
    listed = extras()
    assert OF_USERS | {"test", "all"} <= listed.keys()
    assert listed["all"] == [f"flare_dist[{','.join(name for name in listed if name in OF_USERS)}]"]


def test_the_test_extra_has_no_library_of_another() -> None:
    listed = extras()
    for extra in OF_USERS:
        assert not names_of(listed[extra]) & names_of(listed["test"])


def test_every_extra_has_a_library_by_which_tests_know_it() -> None:
    assert set(EXTRA_OF.values()) >= OF_USERS
    for library, extra in EXTRA_OF.items():
        known = names_of(extras().get(extra, []))
        assert extra in ("docs", "test") or library == "tokenizers" or any(name.startswith(library) for name in known)


def test_skips_for_want_of_an_extra_are_counted_and_others_are_not() -> None:
    reasons = [
        "Skipped: could not import 'peft': No module named 'peft'",
        "Skipped: could not import 'plotly.offline': No module named 'plotly'",
        "Skipped: transformers is not installed",
        "Skipped: needs a CUDA device",
        "Skipped: Triton is not installed",
    ]
    missing = missing_extras(reasons)
    assert missing == {"hf": 2, "plots": 1}
    assert missing_extras(["Skipped: needs the extra docs"]) == {"docs": 1}
    assert in_a_line(missing) == (
        "skipped for want of extras: hf (2), plots (1); pip install --editable '.[hf,plots,test]' runs them"
    )


def test_what_tests_skip_for_is_a_library_of_an_extra() -> None:
    own = {
        "site_codecs",
        "site_docstrings",
        "site_keys",
        "site_methods",
        "site_units",
        "setuptools",
    }  # not of an extra, or with reasons
    for path in (ROOT / "tests").glob("test_*.py"):
        for library in re.findall(r'importorskip\("(\w+)', path.read_text()):
            assert library in EXTRA_OF.keys() | own, f"{path.name}: a skip for want of {library} is not counted"


@pytest.mark.parametrize("is_required", [False, True])
def test_the_end_of_a_run_tells_of_skips_and_fails_if_extras_are_required(is_required: bool, tmp_path: Path) -> None:
    """The tests of this project begin with tests/conftest.py, so it is taken as a plugin."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.skip('wandb is not installed')\ndef test(): ...\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "REQUIRE_EXTRAS": "1" if is_required else ""}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "skipped for want of extras: wandb (1)" in done.stdout
    assert done.returncode == (1 if is_required else 0)
