"""The programs of examples/ are short, use the public names alone, and work outside the repository."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flare_dist

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ROUNDS: dict[str, list[str]] = {  # with their arguments
    "hospital_sites": ["hospitals"],
    "language_model": [],
    "own_algorithm": [],
    "own_sparsifier": [],
    "regression": [],
    "segmentation": [],
}
HOOKS = {  # by library
    "torch": "hook_ddp",
    "accelerate": "hook_accelerate",
    "deepspeed": "hook_deepspeed",
    "transformers": "hook_trainer",
}


def started(name: str, directory: Path, ranks: int, *arguments: str) -> str:
    """Copy an example into the directory and run it there on so many ranks; returns what it printed."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "examples" / f"{name}.py", directory)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }
    done = subprocess.run(
        [sys.executable, *launcher, f"{name}.py", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attach:" not in done.stderr  # no advice that the example itself does not follow
    return done.stdout


def last_numbers(said: str, pattern: str) -> list[float]:
    """Find the numbers of the last line that fits the pattern."""
    found = re.findall(pattern, said)
    assert found, said
    return [float(number.replace(",", "")) for number in found[-1]]


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_is_short_and_uses_public_names(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 60
    tree = ast.parse(source)
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [module for module in modules if str(module).startswith("flare_dist.")]
    used = set(re.findall(r"\bflare_dist\.(\w+)", source))
    assert used <= flare_dist._HOMES.keys()
    assert used & {"train", "attach", "HookCallback"}


def test_the_documentation_names_each_example() -> None:
    listed = set(re.findall(r"\(\.\./examples/(\w+\.(?:py|ipynb))\)", (ROOT / "docs" / "examples.md").read_text()))
    assert listed == {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run each example of rounds on two ranks."""
    return {name: started(name, tmp_path_factory.mktemp(name), 2, *ROUNDS[name]) for name in ROUNDS}


@pytest.mark.parametrize("name", ROUNDS)
def test_one_process_says_the_same_as_two_ranks(said: dict[str, str], tmp_path: Path, name: str) -> None:
    assert started(name, tmp_path, 0, *ROUNDS[name]) == said[name]


def test_the_hospital_with_wrong_labels_is_named(said: dict[str, str]) -> None:
    last = said["hospital_sites"].splitlines()[-1]
    assert last.endswith(" at Lakeside")
    every, worst = last_numbers(last, r"accuracy (\S+)  (\S+) at")
    assert worst < every - 0.1


def test_the_language_model_learns(said: dict[str, str]) -> None:
    assert float(re.findall(r"perplexity (\S+)", said["language_model"])[-1]) < 2


def test_segmentation_and_regression_learn(said: dict[str, str]) -> None:
    assert last_numbers(said["segmentation"], r"iou (\S+)  pixels right (\S+)")[0] > 0.6
    assert last_numbers(said["regression"], r"rmse (\S+)  r2 (\S+)")[0] < 0.85


def test_the_own_sparsifier_lies_between_topk_and_randk(said: dict[str, str]) -> None:
    accuracies = dict(re.findall(r"^(\w+) +accuracy (\S+)  [\d,]+ bytes", said["own_sparsifier"], re.M))
    assert float(accuracies["randk"]) < float(accuracies["drawn"]) < float(accuracies["topk"]) + 0.05
    assert len(set(re.findall(r"(\S+) bytes up", said["own_sparsifier"]))) == 1


def test_the_own_algorithm_learns_faster_than_fedavg(said: dict[str, str]) -> None:
    accuracies = dict(re.findall(r"^(.+?)  round 10  accuracy (\S+)$", said["own_algorithm"], re.M))
    assert float(accuracies["velocity 0.9"]) > float(accuracies["FedAvg      "]) + 0.03


@pytest.mark.parametrize("library", HOOKS)
def test_a_loop_with_the_hook_learns_with_few_bytes(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    assert_learnt(started(HOOKS[library], tmp_path, 2))


def test_a_loop_of_fabric_learns_with_few_bytes(tmp_path: Path) -> None:
    if not importlib.util.find_spec("lightning"):
        pytest.skip("lightning is not installed")
    assert_learnt(started("hook_fabric", tmp_path, 0))


def assert_learnt(said: str) -> None:
    accuracy, sent = last_numbers(said, r"accuracy ([\d.]+)\D.*?([\d,]+) bytes on the wire")
    assert accuracy > 0.7
    assert 0 < sent < 1e6
