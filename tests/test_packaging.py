"""Dependencies are declared, files that list them agree, and the documentation names files that exist."""

from __future__ import annotations

import ast
import configparser
import itertools
import re
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import flare_dist

ROOT = Path(__file__).parent.parent


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements() -> list[str]:
    return setup()["options"]["install_requires"].split()


def extras() -> dict[str, list[str]]:
    return {name: listed.split() for name, listed in setup()["options.extras_require"].items()}


def names_of(listed: Iterable[str]) -> set[str]:
    """Return the names of requirements, without versions, as pip compares them."""
    return {re.split(r"[\[>=<]", requirement)[0].lower().replace("_", "-") for requirement in listed}


def test_environment_lists_the_dependencies_of_setup() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert listed[-1]["pip"] == requirements()
    assert listed[0] == f"python{setup()['options']['python_requires']}"


def test_no_deepspeed_is_admitted_whose_import_fails_on_a_gpu_without_a_cuda_toolkit() -> None:
    (deepspeed,) = (Requirement(listed) for listed in requirements() if listed.startswith("deepspeed"))
    assert [deepspeed.specifier.contains(number) for number in ("0.17.0", "0.19.7", "0.19.8")] == [False, False, True]


def test_the_version_is_written_in_one_place() -> None:
    assert setup()["metadata"]["version"] == "attr: flare_dist.__version__"
    assert version("flare_dist") == flare_dist.__version__
    citation = ROOT / "CITATION.cff"
    if citation.exists():
        assert str(yaml.safe_load(citation.read_text())["version"]) == flare_dist.__version__


def test_every_import_is_a_declared_dependency() -> None:
    declared = names_of(requirements())
    optional = set(itertools.chain.from_iterable(map(names_of, extras().values())))
    optional |= {"triton"}  # comes with the builds of torch that can use it
    distributions = packages_distributions()
    for path in (ROOT / "flare_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
            for name in {str(name).split(".")[0] for name in names} - sys.stdlib_module_names - {"flare_dist"}:
                provided = {distribution.lower().replace("_", "-") for distribution in distributions.get(name, [name])}
                assert provided & (declared | optional), f"{path} imports {name}"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "version", "license"}
    assert citation["version"] == version("flare_dist")
    assert f"version = {{{citation['version']}}}" in (ROOT / "docs" / "cite.md").read_text()


def test_launch_scripts_are_short() -> None:
    for path in (ROOT / "launch").glob("*.s*"):
        assert len(path.read_text().splitlines()) <= 15
        assert '"$@"' in path.read_text()


def test_the_tree_of_the_documentation_is_true() -> None:
    tree = (ROOT / "docs" / "code.md").read_text()
    for path in (ROOT / "flare_dist").rglob("*.py"):
        if not path.name.startswith("__"):
            assert re.search(rf"\b{re.escape(path.name)}", tree), f"docs/code.md does not mention {path.name}"


def test_the_readme_names_every_folder() -> None:
    readme = (ROOT / "README.md").read_text().split("## Where the code is")[1]
    folders = [path.parent.name for path in (ROOT / "flare_dist").glob("*/__init__.py")]
    assert not [name for name in folders if f"{name}/" not in readme]


def test_files_named_in_the_documentation_exist() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        # Links, in parentheses, are those of a page to another, which tests/test_site.py follows.
        for name in re.findall(r"(?<![/(])\b(?:launch|configs|docs|benchmarks)/[\w./-]+\.\w+", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name} mentions {name}"
