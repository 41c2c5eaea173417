"""List the keys of a configuration from its dataclasses: name, type, default, and what the docstring says of it.

``{keys} section``            all keys of a section, without an argument those of the run itself
``{keys-named}``              the keys that stand below, on the page of a method; a name may have * in it
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import docstring_parser
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from flare_dist.config.config import Config

WORDS = {
    "bool": "true or false",
    "None": "null",
    "Options": "keys and values",
    "str": "text",
    "int": "integer",
    "float": "number",
}


class Key(NamedTuple):
    name: str
    type: str
    default: str
    description: str


def every_key(config: type[Any] = Config, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a dataclass in their order, nested sections after the keys beside them."""
    parameters = docstring_parser.parse(config.__doc__ or "").params
    described = {item.arg_name: " ".join((item.description or "").split()) for item in parameters}
    nested = []
    for field in dataclasses.fields(config):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default):
            nested.append((type(default), f"{prefix}{field.name}."))
        else:
            yield Key(prefix + field.name, readable(str(field.type)), written(default), described[field.name])
    for section, name in nested:
        yield from every_key(section, name)


def readable(annotation: str) -> str:
    """Write a type as a user of YAML would."""
    if annotation.startswith("tuple["):
        return "list"
    return " or ".join(_word(part) for part in annotation.split(" | "))


def _word(part: str) -> str:
    if part.startswith("tuple["):
        return "list"
    return WORDS["Options"] if part.startswith("dict[") else WORDS.get(part, part)


def written(value: Any) -> str:
    """Write a default as it stands in a file."""
    value = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000)).removesuffix("...\n").strip()


def anchor(name: str) -> str:
    """Name the anchor of a key: key-clients-lr."""
    return f"key-{name}".replace("_", "-").replace(".", "-").lower()


def definitions(chosen: Iterable[Key], anchored: bool = False) -> nodes.definition_list:
    """Define keys, each with its type and default behind its name."""
    found = nodes.definition_list(classes=["keys"])
    for key in chosen:
        term = nodes.term("", "", nodes.literal(text=key.name), nodes.Text(f"  {key.type}, "))
        term += nodes.literal(text=key.default)
        if anchored:
            term["ids"].append(anchor(key.name))
        found += nodes.definition_list_item("", term, nodes.definition("", paragraph(key.description)))
    return found


def paragraph(text: str) -> nodes.paragraph:
    """Write text, in which what stands between backticks is code."""
    found = nodes.paragraph()
    for place, part in enumerate(text.split("`")):
        found += nodes.literal(text=part) if place % 2 else nodes.Text(part)
    return found


class Keys(SphinxDirective):
    """Define the keys of a section; each has an anchor."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        section = self.arguments[0] if self.arguments else ""
        found = [key for key in every_key() if key.name.rpartition(".")[0] == section]
        if not found:
            raise self.error(f"{section} has no keys")
        return [definitions(found, anchored=True)]


class KeysNamed(SphinxDirective):
    """Define the keys of a method."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        by_name = {key.name: key for key in every_key()}
        chosen: dict[str, Key] = {}
        for pattern in " ".join(self.content).split():
            matching = fnmatch.filter(by_name, pattern)
            if not matching:
                raise self.error(f"there is no key {pattern}")
            chosen |= {name: by_name[name] for name in matching}
        return [definitions(chosen.values())]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("keys", Keys)
    app.add_directive("keys-named", KeysNamed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
