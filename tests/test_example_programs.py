"""The programs of examples/ are short, use the public names alone, and work outside the repository."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import runpy
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import flare_dist
from tests.helpers.ports import free_port
from tests.ranks import rank_processes, results_of

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
HOOKS = {  # by library, with their arguments
    "torch": ("hook_ddp", "--epochs=3"),
    "accelerate": ("hook_accelerate", "--epochs=3"),
    "deepspeed": ("hook_deepspeed", "--epochs=2"),
    "lightning": ("hook_fabric", "--epochs=3"),
    "transformers": ("hook_trainer", "--steps=40"),
}


def printed(pool: ProcessPoolExecutor, size: int, directory: Path, name: str, *arguments: str) -> str:
    """Run a copy of an example in the directory, on so many ranks; returns what rank 0 prints, and others do not."""
    directory.mkdir()
    shutil.copy(ROOT / "examples" / f"{name}.py", directory)
    port = free_port()
    futures = [pool.submit(_run, rank, size, port, directory, name, arguments) for rank in range(size)]
    said, *others = results_of(pool, futures, 300.0)
    assert not any(others)
    return str(said)


def _run(rank: int, size: int, port: int, directory: Path, name: str, arguments: tuple[str, ...]) -> str:
    """Run a program as torchrun would, or if it is alone as python would."""
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": name}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    sys.argv = [f"{name}.py", *arguments]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert "attach:" not in err.getvalue()  # no advice that the example itself does not follow
    return out.getvalue()


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
    page = (ROOT / "docs" / "guides" / "examples.md").read_text()
    listed = set(re.findall(r"\(\.\./\.\./examples/(\w+\.py)\)", page))
    assert "notebook.ipynb" in page
    assert listed == {path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py"}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Run each example of rounds on two ranks; gives the folder of all their runs and what each printed."""
    directory = tmp_path_factory.mktemp("two")
    with rank_processes(2) as two:
        return directory, {name: printed(two, 2, directory / name, name, *ROUNDS[name]) for name in ROUNDS}


@pytest.fixture
def said(two_ranks: tuple[Path, dict[str, str]]) -> dict[str, str]:
    """What each example printed."""
    return two_ranks[1]


def models(directory: Path) -> dict[str, bytes]:
    """Read the final models of all runs below the directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("model.safetensors")}


@pytest.mark.parametrize("name", ROUNDS)
def test_one_process_trains_the_model_of_two_ranks(
    two_ranks: tuple[Path, dict[str, str]], name: str, tmp_path: Path
) -> None:
    directory, said = two_ranks
    with rank_processes(1) as one:
        assert printed(one, 1, tmp_path / name, name, *ROUNDS[name]) == said[name]
    expected = models(directory / name)
    assert expected
    assert models(tmp_path / name) == expected


def test_the_hospital_with_wrong_labels_is_named(said: dict[str, str]) -> None:
    last = said["hospital_sites"].splitlines()[-1]
    assert last.endswith(" at Lakeside")
    every, worst = last_numbers(last, r"accuracy (\S+)  worst (\S+) at")
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


def test_lora_learns_from_few_bytes_and_is_exported_for_peft(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    with rank_processes(2) as two:
        said = printed(two, 2, tmp_path / "two", "lora")
    assert last_numbers(said, r"round (10) accuracy (\S+)")[1] > 0.9
    share, sent = last_numbers(said, r"(\S+)% of the weights trained; (\S+) bytes up")
    dense, whole = last_numbers(said, r"adapters: (\S+) bytes; the whole model: (\S+)")
    assert share < 10
    assert sent < dense / 20 < whole / 200
    adapter = tmp_path / "two" / "runs" / "lora" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "LORA"
    tensors = load_file(adapter / "adapter_model.safetensors").keys()
    assert len([name for name in tensors if ".lora_" in name]) == 4
    assert all(".lora_" in name or "classifier" in name for name in tensors)


@pytest.mark.parametrize("library", HOOKS)
def test_a_loop_with_the_hook_learns_with_few_bytes(library: str, tmp_path: Path) -> None:
    if not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    with rank_processes(2) as two:
        said = printed(two, 2, tmp_path / "two", *HOOKS[library])
    accuracy, sent = last_numbers(said, r"accuracy ([\d.]+)\D.*?([\d,]+) bytes on the wire")
    assert accuracy > 0.7
    assert 0 < sent < 1e6
