"""jsonargparse's parser with our rules: options in full, values by `values.py`, errors in one line that says where."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from flare_dist.config.values import convert_text, describe, expand_home, leaf_types, to_text
from flare_dist.config.yaml_file import STANDARD_TAG, SUGGESTIONS, Document, read_file, read_text, suggest

WRONG_TYPE = re.compile(
    r"""Parser key "([^"]+)":.*?Expected an? <class '(?!NoneType)(\w+)'>.*(?:Got|Given) value: (.*)""", re.DOTALL
)
TYPES: dict[str, type] = {kind.__name__: kind for kind in (int, float, str, bool)}
COMMAND = re.compile(r"argument subcommand: invalid choice: '(.*)' \(choose from (.*)\)")
OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w.]*")
OF_SECTION = re.compile(r"(?<![\w.-])[a-z_]+(?:\.[a-z_]+)+")  # keys within a message
OF_DEFAULT: dict[type, Any] = {str: str, int: int, type(None): float | None}  # types of a command's own options


class _Quoting(yaml.SafeDumper):
    """Puts every text into quotation marks: jsonargparse's loader would take 1e3 for a number, which YAML does not."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar(f"{STANDARD_TAG}str", text, style='"'))


class Parser(ArgumentParser):
    """A parser that takes no abbreviations, raises instead of exiting, and suggests what a mistyped option may be."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **({"exit_on_error": False, "allow_abbrev": False} | options))

    def error(self, message: str, ex: Exception | None = None) -> Any:
        super().error(self._explain(message), ex)

    def _explain(self, message: str) -> str:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            known = dict.fromkeys(OPTION.findall(self.format_help()))
            return f"{unknown[1]}: there is no such option{suggest(unknown[1], known)}"
        if "subcommand" in message and "not provided" in message:
            return "a command is missing; flare-dist --help lists them"
        command = COMMAND.match(message)
        if command:
            similar = suggest(command[1], re.findall(r"\w+", command[2])) or f"; choose from {command[2]}"
            return f"{command[1]}: there is no such command{similar}"
        file = re.match(r"unrecognized arguments: (\S+\.ya?ml)\b", message)
        if file:
            return f"config: {file[1]} follows another argument's value; write --config before each file"
        wrong = WRONG_TYPE.match(message)
        return f"--{wrong[1]}: expected {describe(TYPES.get(wrong[2]))}, got {wrong[3]}" if wrong else message


class ConfigParser(Parser):
    """A parser of the keys of one dataclass, that remembers which file says what.

    Files and arguments are layers in the order of the command line: a key has the value of the last one that sets it.

    Attributes:
        files: the configuration files that were read, in order.
        places: dotted key -> where the last file that sets it does, e.g. "my.yaml:3".
    """

    def __init__(self, *args: Any, configuration: type | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hints: dict[str, Any] = {}
        self.files: list[str] = []
        self.places: dict[str, str] = {}
        self._given: set[str] = set()  # keys whose last word is an argument's
        self._documents: dict[str, Document] = {}  # by path, while a command line is parsed
        if configuration is not None:
            self.hints = leaf_types(configuration)
            self.add_argument(
                "--config",
                action="config",
                help="YAML file with the keys that differ from the defaults; of several the later wins, key by key.",
            )
            self.add_class_arguments(configuration)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None, **options: Any) -> Namespace:  # type: ignore[override]
        self.files = []
        self.places = {}
        self._given = set()
        try:
            arguments = self._checked(sys.argv[1:] if args is None else args)
            return super().parse_args(arguments, namespace=namespace, **options)
        finally:
            self._documents = {}

    def parse_path(self, path: Any, *args: Any, **options: Any) -> Namespace:
        document = self._documents.get(str(path)) or self._read(str(path))
        return self.parse_string(yaml.dump(document.nested(), Dumper=_Quoting), *args, **options)

    def _read(self, path: str, section: str = "") -> Document:
        """Read a file that is laid over what has been read and given so far."""
        document = read_file(Path(path), self.hints if section else self._own_types | self.hints, section)
        self.files.append(path)
        self.places |= document.places
        self._given -= document.places.keys()
        return document

    @functools.cached_property
    def _own_types(self) -> dict[str, Any]:
        """Types of what a command has beside the configuration, which a file may say as well."""
        own = {key: type(value) for key, value in vars(self.get_defaults()).items() if key != "config"}
        return {key: OF_DEFAULT[kind] for key, kind in own.items() if kind in OF_DEFAULT}

    @contextmanager
    def located(self) -> Iterator[None]:
        """Put the file and the line into the ValueErrors of a block that begin with a key, if a file set it."""
        try:
            yield
        except ValueError as error:
            raise ValueError(self._locate(str(error))) from error

    def _locate(self, message: str) -> str:
        key, colon, problem = message.partition(": ")
        is_key = key in self.hints or any(known.startswith(f"{key}.") for known in self.hints)
        if not colon or not is_key or any(file in message for file in self.files):
            return message
        others = self._others(key, problem)
        if key in self.places and key not in self._given:
            return f"{key}: {self.places[key]}: {problem}{others}"
        if key in self._given or others or not self.files:
            return f"{message}{others}"
        leave = "leaves" if len(self.files) == 1 else "leave"
        default = f", which {leave} this key at its default" if key in self.hints else ""
        return f"{message} (configured by {', '.join(self.files)}{default})"

    def _others(self, key: str, problem: str) -> str:
        """Name the places of the other keys in a message, since another file may have set them."""
        in_files = self.places.keys() - self._given - {key}
        named = [other for other in dict.fromkeys(OF_SECTION.findall(problem)) if other in in_files]
        return "".join(f"; {other} is set at {self.places[other]}" for other in named[:SUGGESTIONS])

    def _checked(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with the values of our keys converted; ValueError names the key of one that is wrong."""
        checked: list[str] = []
        rest = iter(arguments)
        for argument in rest:
            name, equals, text = argument.partition("=")
            if not equals and self._takes_value(name):
                following = next(rest, None)
                if following is None or following.startswith("--"):  # argparse says what is missing
                    checked += [argument] if following is None else [argument, following]
                    continue
                text = following
            known = name.startswith("--") and self._takes_value(name)
            checked.append(f"{name}={self._checked_value(name[2:], text)}" if known else argument)
        return checked

    def _takes_value(self, name: str) -> bool:
        key = name.removeprefix("--")
        is_section = any(known.startswith(f"{key}.") for known in self.hints)
        return name.startswith("--") and (key == "config" or key in self.hints or is_section)

    def _checked_value(self, key: str, text: str) -> str:
        if key == "config":
            path = existing_file(text)
            self._documents[path] = self._read(path)
            return path
        if key in self.hints:
            self._given.add(key)
            try:
                return to_text(convert_text(self.hints[key], text))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        if text.lstrip().startswith("{"):
            document = read_text(text, self.hints, f"--{key}", key)
            self._given |= document.values.keys()
        else:
            document = self._read(existing_file(text, key), key)
        return to_text(functools.reduce(lambda tree, name: tree.get(name, {}), key.split("."), document.nested()))


def existing_file(text: str, key: str = "config") -> str:
    """The path of a file that can be read, with ~ replaced."""
    path = expand_home(text, key)
    if os.path.isdir(path):
        raise ValueError(f"{key}: {path}: is a directory; name a YAML file in it")
    if not os.path.exists(path):
        raise ValueError(f"{key}: {path}: there is no such file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{key}: {path}: may not be read; check its permissions")
    return path


def user_path(text: str | Path) -> Path:
    """A path on the command line; `~` is the home directory there as it is in configuration files."""
    return Path(os.path.expanduser(text))  # unlike Path's own, this leaves the name of a user who is not there
