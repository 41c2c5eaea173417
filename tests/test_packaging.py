"""Dependencies are declared, files that list them agree, and the documentation names files that exist."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def requirements() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["options"]["install_requires"].split()


def test_environment_lists_the_dependencies_of_setup() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert listed[-1]["pip"] == requirements()


def test_every_import_is_a_declared_dependency() -> None:
    declared = {re.split(r"[\[>=<]", requirement)[0].lower().replace("_", "-") for requirement in requirements()}
    # Triton comes with the builds of torch that can use it.
    optional = {"matplotlib", "pandas", "transformers", "peft", "triton", "wandb", "mlflow", "mlflow-skinny"}
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
