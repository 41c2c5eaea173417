"""What is installed is what is used, and the files that say so agree."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from flare_dist.config.config import as_dict, differing_keys, load_config

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
    optional = {"matplotlib", "triton"}  # Triton comes with the builds of torch that can use it
    distributions = packages_distributions()
    for path in (ROOT / "flare_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
            for name in {str(name).split(".")[0] for name in names} - sys.stdlib_module_names - {"flare_dist"}:
                provided = {distribution.lower().replace("_", "-") for distribution in distributions.get(name, [name])}
                assert provided & (declared | optional), f"{path} imports {name}"


def test_every_configuration_file_is_valid() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(files) >= 4
    for path in files:
        config = load_config(path)
        assert Path(config.output_dir) == Path("runs") / path.stem


@pytest.mark.parametrize("model", ["fc", "cnn", "vgg", "gru"])
@pytest.mark.parametrize("method", ["ec", "ef21", "fedprox", "fedavg"])
def test_the_twins_of_flare_differ_in_the_method_alone(model: str, method: str) -> None:
    flare, twin = (load_config(ROOT / "configs" / f"flare_{model}{end}.yaml") for end in ("", f"_{method}"))
    free = ("output_dir", "clients.objective", "clients.flare.", "clients.fedprox.", "compression.")
    assert flare.clients.objective == "flare"
    assert all(key.startswith(free) for key in differing_keys(as_dict(flare), as_dict(twin)))
    assert (flare.compression.density == twin.compression.density) is (method != "fedavg")
    if method == "fedprox":
        assert twin.clients.fedprox.mu == pytest.approx(2 * flare.clients.flare.tau)
        assert twin.clients.fedprox.decay == flare.clients.flare.decay


def test_launch_scripts_are_short() -> None:
    for path in (ROOT / "launch").glob("*.s*"):
        assert len(path.read_text().splitlines()) <= 15
        assert '"$@"' in path.read_text()


def test_the_readme_tree_is_true() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "flare_dist").rglob("*.py"):
        if not path.name.startswith("__"):
            assert re.search(rf"\b{re.escape(path.name)}", readme), f"README.md does not mention {path.name}"
    for name in re.findall(r"(?:launch|configs|docs|benchmarks)/[\w./-]+\.\w+", readme):
        assert (ROOT / name).exists(), f"README.md mentions {name}"
