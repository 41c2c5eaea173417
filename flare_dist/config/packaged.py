"""Configurations that come with the package: `--config quickstart` works from any directory.

They are the folder configs/ beside the package in the repository, which an installed package holds as its own.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from flare_dist.config.parser import existing_file
from flare_dist.config.values import expand_home

PACKAGE = Path(__file__).parents[1]


@cache
def packaged_configs() -> dict[str, Path]:
    """Find the packaged configurations: name, e.g. flare/fc, -> file."""
    installed = PACKAGE / "configs"
    folder = installed if installed.is_dir() else PACKAGE.parent / "configs"
    found = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*/*.yaml"))]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def find_config(text: str) -> str:
    """Find the file that --config names: a user's own, or the packaged configuration of that name.

    ValueError lists packaged names if there is neither.
    """
    path = expand_home(text, "config")
    packaged = packaged_configs().get(text)
    if packaged is not None and not os.path.isfile(path):
        return str(packaged)
    if os.path.exists(path):
        return existing_file(text)
    similar = _similar(text)
    if similar:
        raise ValueError(f"config: {path}: there is no such file; did you mean {' or '.join(similar)}?")
    known = ", ".join(packaged_configs())
    raise ValueError(f"config: {path}: there is no such file; check the path, or choose a packaged one: {known}")


def _similar(text: str) -> list[str]:
    """List the packaged names that a missing file may mean, e.g. quickstart for configs/quickstart.yaml."""
    name = text.removeprefix("configs/").removesuffix(".yaml").removesuffix(".yml")
    known = packaged_configs()
    alike = [other for other in known if other == name] or [other for other in known if Path(other).name == name]
    return alike or get_close_matches(name, known, 3, 0.75)


def description(path: Path) -> str:
    """Read the comment at the head of a configuration, without the commands in it."""
    head: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        if not line.startswith("#  "):
            head.append(line.removeprefix("# "))
    return " ".join(head)
