"""jsonargparse's parser with our rules: no abbreviations, errors in one line, suggestions for mistyped words."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from flare_dist.config.values import describe, expand_home
from flare_dist.config.yaml_file import suggest

WRONG_TYPE = re.compile(
    r"""Parser key "([^"]+)":.*?Expected an? <class '(?!NoneType)(\w+)'>.*(?:Got|Given) value: (.*)""", re.DOTALL
)
TYPES: dict[str, type] = {kind.__name__: kind for kind in (int, float, str, bool)}
COMMAND = re.compile(r"argument subcommand: invalid choice: '(.*)' \(choose from (.*)\)")
MISSING = re.compile(r"the following arguments are required: (\w+)\.(\w+)")
OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w.]*")


class Parser(ArgumentParser):
    """Parse options in full, raise instead of exiting, and suggest what a mistyped option may be."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **({"exit_on_error": False, "allow_abbrev": False} | options))

    def error(self, message: str, ex: Exception | None = None) -> Any:
        super().error(self._explain(message), ex)

    def _explain(self, message: str) -> str:
        """Rewrite a message of argparse or jsonargparse as one line that tells what to do."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            known = dict.fromkeys(OPTION.findall(self.format_help()))
            return f"{unknown[1]}: there is no such option{suggest(unknown[1], known)}"
        if "subcommand" in message and "not provided" in message:
            return "a command is missing; flare-dist --help lists them"
        missing = MISSING.match(message)
        if missing:
            return f"{missing[1]}: {missing[2]} must be given; flare-dist {missing[1]} --help describes it"
        command = COMMAND.match(message)
        if command:
            similar = suggest(command[1], re.findall(r"\w+", command[2])) or f"; choose from {command[2]}"
            return f"{command[1]}: there is no such command{similar}"
        file = re.match(r"unrecognized arguments: (\S+\.ya?ml)\b", message)
        if file:
            return f"config: {file[1]} follows another argument's value; write --config before each file"
        wrong = WRONG_TYPE.match(message)
        return f"--{wrong[1]}: expected {describe(TYPES.get(wrong[2]))}, got {wrong[3]}" if wrong else message


def existing_file(text: str, key: str = "config") -> str:
    """Return the path of a file that can be read, with ~ replaced; ValueError begins with `key`."""
    path = expand_home(text, key)
    if os.path.isdir(path):
        raise ValueError(f"{key}: {path}: is a directory; name a YAML file in it")
    if not os.path.exists(path):
        raise ValueError(f"{key}: {path}: there is no such file; check the path")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{key}: {path}: may not be read; check its permissions")
    return path


def user_path(text: str | Path) -> Path:
    """Read a path of the command line; `~` is the home directory, as it is in configuration files."""
    return Path(os.path.expanduser(text))  # unlike Path's own, this leaves the name of a user who is not there
