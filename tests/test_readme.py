"""The lines that the documentation adds to ordinary scripts give training that is sparse and resumes bitwise."""

from __future__ import annotations

import os
import re
import runpy
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType, PartialState
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import flare_dist
from tests.helpers.pages import DOCUMENTS, python_blocks
from tests.helpers.ports import free_port
from tests.ranks import rank_processes, results_of

ROOT = Path(__file__).parent.parent
SCRIPTS = {  # each with the heading of its diff in the guide, and the ranks that it takes
    "ddp_loop.py": ("DDP", 2),
    "accelerate_loop.py": ("Accelerate", 2),
    "deepspeed_loop.py": ("DeepSpeed", 2),
    "fsdp_loop.py": ("FSDP2", 4),
    "accelerate_fsdp_loop.py": ("Accelerate", 4),
}


def diffs() -> dict[str, list[str]]:
    """Find the lines of each diff in the guide to one's own loop, by the heading before it."""
    before, *blocks = (ROOT / "docs" / "guides" / "loops.md").read_text().split("```diff\n")
    found = {}
    for block in blocks:
        diff, after = block.split("```", 1)
        name = re.findall(r"^## (\w+)$", before, re.MULTILINE)[-1]
        found[name] = diff.splitlines()
        before = after
    return found


def applied(script: str, diff: list[str]) -> str:
    """Add the diff's new lines to the script, each behind the line that it follows there."""
    lines, place = script.splitlines(), 0
    for line in diff:
        sign, text = line[:1], line[1:]
        if sign == "+":
            lines.insert(place, text)
            place += 1
        elif text.strip() != "...":
            place = lines.index(text, place) + 1  # ValueError: the guide and the script do not fit any more
    return "\n".join(lines) + "\n"


def on_ranks(path: Path, ranks: int, *arguments: str) -> list[dict[str, Any]]:
    """Run a script on these ranks, as a launcher would; returns the weights of each, and the bytes of its hook."""
    port = free_port()
    with rank_processes(ranks) as pool:
        futures = [pool.submit(_run, rank, ranks, port, str(path), arguments) for rank in range(ranks)]
        return results_of(pool, futures, 120.0)


def _run(rank: int, ranks: int, port: int, path: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    size = str(ranks)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    if "ParallelismConfig" in Path(path).read_text():
        shard_on_cpus()
    sys.argv = [path, *arguments]
    end = runpy.run_path(path)
    torch.distributed.destroy_process_group()
    return {"weights": end["weights"], "wire_bytes": end["hook"].wire_bytes if "hook" in end else None}


def shard_on_cpus() -> None:
    """Let Accelerate, which refuses FSDP without GPUs, take the CPUs of a process group for some."""
    torch.distributed.init_process_group("gloo")
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def weights(ends: list[dict[str, Any]]) -> Tensor:
    assert all(torch.equal(ends[0]["weights"], end["weights"]) for end in ends)
    found = ends[0]["weights"]
    assert isinstance(found, Tensor)
    return found


def test_the_guide_has_a_diff_for_each_library() -> None:
    assert diffs().keys() == {heading for heading, _ in SCRIPTS.values()}
    added = [line for line in diffs()["DDP"] if line.startswith("+")]
    assert len(added) == 5


def test_what_the_documentation_calls_is_there() -> None:
    for path in DOCUMENTS:
        called = set(re.findall(r"\bflare_dist\.([A-Za-z]\w+)\(", path.read_text()))
        assert called <= flare_dist._HOMES.keys(), path
        for block in python_blocks(path):
            compile(block, str(path), "exec")
    for name in ("README.md", "docs/guides/loops.md", "docs/guides/optimizers.md"):
        called = set(re.findall(r"\bflare_dist\.(\w+)\(", (ROOT / name).read_text()))
        assert {"attach", "HookCallback", "LightningHookCallback"} <= called


def test_the_readme_is_short_and_in_order() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    own = ["Your data", "Your model", "Your loop"]
    assert headings == ["Why", "Run it", *own, "Results", "Where the code is", "Cite"]
    for heading in own:
        section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
        assert len(max(python_blocks_of(section), key=len).splitlines()) <= 10
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / link).exists(), link


def python_blocks_of(section: str) -> list[str]:
    return re.findall(r"^```py(?:thon)?\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def test_the_readmes_data_and_model_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = TensorDataset(torch.randn(60, 1, 4, 4), torch.arange(60) % 2)
    short = SimpleNamespace(train=partial(flare_dist.train, rounds=2), Source=flare_dist.Source, Part=flare_dist.Part)
    given = {"flare_dist": short, "nn": nn, "images": images, "other_images": images, "hospitals": ["a", "b"] * 30}
    data, model, _ = python_blocks(ROOT / "README.md")
    exec(compile(data, "README.md", "exec"), given)
    exec(compile(model, "README.md", "exec"), given)
    assert (tmp_path / "runs" / "mine" / "summary.json").exists()
    assert (tmp_path / "runs" / "model" / "summary.json").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_diff_makes_an_ordinary_script_sparse(tmp_path: Path, name: str) -> None:
    before = ROOT / "tests" / "scripts" / name
    heading, ranks = SCRIPTS[name]
    after = tmp_path / "after.py"
    after.write_text(applied(before.read_text(), diffs()[heading]))
    (tmp_path / "straight").mkdir()
    (tmp_path / "halved").mkdir()
    straight = on_ranks(after, ranks, str(tmp_path / "straight"), "new", "12")
    on_ranks(after, ranks, str(tmp_path / "halved"), "new", "6")
    resumed = on_ranks(after, ranks, str(tmp_path / "halved"), "resume", "12")
    assert torch.equal(weights(straight), weights(resumed))
    dense = on_ranks(before, ranks, str(tmp_path), "new", "12")
    assert dense[0]["wire_bytes"] is None
    assert not torch.equal(weights(dense), weights(straight))
    assert 0 < straight[0]["wire_bytes"] < 12 * 2 * 4 * weights(dense).numel() / 2
