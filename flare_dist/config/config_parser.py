"""A parser of every key of a configuration: files and arguments are layers, of which arguments are the upper ones."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import register_type

from flare_dist.config.dumping import dump_quoted, to_text
from flare_dist.config.option_layers import OptionLayers, convert_item, is_options
from flare_dist.config.origins import Origins
from flare_dist.config.packaged import find_config
from flare_dist.config.parser import Parser, existing_file
from flare_dist.config.values import convert_text, leaf_types
from flare_dist.config.yaml_file import Document, read_file, read_text
from flare_dist.named import Setting

OF_DEFAULT: dict[type, Any] = {str: str, int: int, type(None): float | None}  # types of a command's own options


# The values of options are the user's: jsonargparse would read a text in them once more, and find a number in it.
register_type(Setting, lambda value: value, lambda value: value, type_check=lambda value, kind: True)


class ConfigParser(Parser):
    """Parse the keys of one dataclass, and remember which file or argument sets each.

    Of several files the later wins, key by key. Arguments win over all files, whatever their order on the command line.

    Attributes:
        hints: dotted key -> type.
        origins: what set the keys of the command line that was parsed last.
    """

    def __init__(self, *args: Any, configuration: type | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hints: dict[str, Any] = {}
        self.origins = Origins(self.hints)
        self._documents: dict[str, Document] = {}  # by path, while a command line is parsed
        self._options = OptionLayers({})
        if configuration is not None:
            self.hints = leaf_types(configuration)
            self.add_argument(
                "--config",
                action="config",
                help="YAML file with the keys that differ from the defaults, or the name of a packaged one (flare-dist "
                "configs lists them); of several the later wins, key by key, and arguments win over files.",
            )
            self.add_class_arguments(configuration)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None, **options: Any) -> Namespace:  # type: ignore[override]
        self.origins = Origins(self.hints)
        keys = [key for key, hint in self.hints.items() if is_options(hint)]
        self._options = OptionLayers({key: namespace[key] if namespace and key in namespace else {} for key in keys})
        try:
            arguments = self._checked(sys.argv[1:] if args is None else args)
            return super().parse_args(arguments, namespace=namespace, **options)
        finally:
            self._documents = {}

    def dump(self, cfg: Namespace, **options: Any) -> str:
        """Write the keys of the configuration, without the command's own options, which no file may hold."""
        keys = {key.partition(".")[0] for key in self.hints}
        own = Namespace({key: value for key, value in vars(cfg).items() if key in keys or key == "config"})
        return super().dump(own, **options)

    def parse_path(self, path: Any, *args: Any, **options: Any) -> Namespace:
        document = self._documents.get(str(path)) or self._read(str(path))
        return self.parse_string(dump_quoted(document.nested()), *args, **options)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Put the file and the line into the ValueErrors of a block that begin with a key, if a file set it."""
        try:
            yield
        except ValueError as error:
            raise ValueError(self.origins.locate(str(error))) from error

    def _read(self, path: str, section: str = "") -> Document:
        """Read a file that is laid over those before it."""
        document = read_file(Path(path), self.hints if section else self._own_types | self.hints, section)
        self.origins.add_file(path, document)
        self._options.add_file(document.values)
        return document

    @functools.cached_property
    def _own_types(self) -> dict[str, Any]:
        """Give the types of a command's options beside the configuration, which a file may set as well."""
        own = {key: type(value) for key, value in vars(self.get_defaults()).items() if key != "config"}
        return {key: OF_DEFAULT[kind] for key, kind in own.items() if kind in OF_DEFAULT}

    def _checked(self, arguments: Sequence[str]) -> list[str]:
        """Convert the values of our keys and put files first, so that arguments win whatever their order.

        ValueError names the key of a value that is wrong.
        """
        files: list[str] = []
        others: list[str] = []
        rest = iter(arguments)
        for argument in rest:
            name, equals, text = argument.partition("=")
            if not self._takes_value(name):
                others.append(argument)
                continue
            if not equals:
                following = next(rest, None)
                if following is None or following.startswith("--"):  # argparse says what is missing
                    others += [argument] if following is None else [argument, following]
                    continue
                text = following
            key = name.removeprefix("--")
            if self._options.owner(key):
                self._add_option(key, text)
                continue
            layer = files if self._is_file(key, text) else others
            layer.append(f"{name}={self._checked_value(key, text)}")
        return files + others + [f"--{key}={to_text(value)}" for key, value in self._options.changed()]

    def _add_option(self, key: str, text: str) -> None:
        """Change the options of a key, or one value below them, e.g. model.options.lora.r."""
        owner = self._options.owner(key)
        self.origins.add_arguments([owner])
        try:
            value = convert_text(self.hints[key], text) if key == owner else convert_item(text)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        self._options.change(key, value)

    def _takes_value(self, name: str) -> bool:
        key = name.removeprefix("--")
        is_section = any(known.startswith(f"{key}.") for known in self.hints)
        is_known = key == "config" or key in self.hints or is_section or bool(self._options.owner(key))
        return name.startswith("--") and is_known

    def _is_file(self, key: str, text: str) -> bool:
        """Tell whether an option names a file: --config FILE, or a section as in --clients FILE."""
        return key not in self.hints and not (key != "config" and text.lstrip().startswith("{"))

    def _checked_value(self, key: str, text: str) -> str:
        """Convert the value of a key, a section or --config, and remember what set it."""
        if key == "config":
            path = find_config(text)
            self._documents[path] = self._read(path)
            return path
        if key in self.hints:
            self.origins.add_arguments([key])
            try:
                return to_text(convert_text(self.hints[key], text))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        if self._is_file(key, text):
            document = self._read(existing_file(text, key), key)
        else:
            document = read_text(text, self.hints, f"--{key}", key)
            self.origins.add_arguments(document.values)
            for own in filter(self._options.owner, document.values):
                self._options.change(own, document.values[own])
        return to_text(functools.reduce(lambda tree, name: tree.get(name, {}), key.split("."), document.nested()))
