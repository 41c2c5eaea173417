"""The README's diffs, applied to ordinary scripts, give training that is sparse and resumes bitwise."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flare_dist
from tests.helpers.ports import free_port
from tests.ranks import rank_processes, results_of

ROOT = Path(__file__).parent.parent
SCRIPTS = {"DDP": "ddp_loop.py", "Accelerate": "accelerate_loop.py", "DeepSpeed": "deepspeed_loop.py"}


def diffs() -> dict[str, list[str]]:
    """Find the lines of each diff in the README, by the bold word that begins the paragraph before it."""
    before, *blocks = (ROOT / "README.md").read_text().split("```diff\n")
    found = {}
    for block in blocks:
        diff, after = block.split("```", 1)
        name = re.findall(r"\*\*(\w+)\*\*", before)[-1]
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
            place = lines.index(text, place) + 1  # ValueError: the README and the script do not fit any more
    return "\n".join(lines) + "\n"


def on_ranks(path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a script on two ranks, as a launcher would; returns the weights of each, and the bytes of its hook."""
    port = free_port()
    with rank_processes(2) as pool:
        futures = [pool.submit(_run, rank, port, str(path), arguments) for rank in range(2)]
        return results_of(pool, futures, 120.0)


def _run(rank: int, port: int, path: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    sys.argv = [path, *arguments]
    end = runpy.run_path(path)
    torch.distributed.destroy_process_group()
    return {"weights": end["weights"], "wire_bytes": end["hook"].wire_bytes if "hook" in end else None}


def weights(ends: list[dict[str, Any]]) -> Tensor:
    assert torch.equal(ends[0]["weights"], ends[1]["weights"])
    found = ends[0]["weights"]
    assert isinstance(found, Tensor)
    return found


def test_the_readme_has_a_diff_for_each_library() -> None:
    assert diffs().keys() == SCRIPTS.keys()
    added = [line for line in diffs()["DDP"] if line.startswith("+")]
    assert len(added) == 5


def test_what_the_documentation_calls_is_there() -> None:
    for name in ("README.md", "docs/guides/optimizers.md"):
        text = (ROOT / name).read_text()
        called = set(re.findall(r"\bflare_dist\.(\w+)\(", text))
        assert {"attach", "HookCallback", "LightningHookCallback"} <= called <= flare_dist._HOMES.keys()
        for block in text.split("```python\n")[1:]:
            compile(block.split("```", 1)[0], name, "exec")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_diff_makes_an_ordinary_script_sparse(tmp_path: Path, name: str) -> None:
    before = ROOT / "tests" / "scripts" / SCRIPTS[name]
    after = tmp_path / "after.py"
    after.write_text(applied(before.read_text(), diffs()[name]))
    (tmp_path / "straight").mkdir()
    (tmp_path / "halved").mkdir()
    straight = on_ranks(after, str(tmp_path / "straight"), "new", "12")
    on_ranks(after, str(tmp_path / "halved"), "new", "6")
    resumed = on_ranks(after, str(tmp_path / "halved"), "resume", "12")
    assert torch.equal(weights(straight), weights(resumed))
    dense = on_ranks(before, str(tmp_path), "new", "12")
    assert dense[0]["wire_bytes"] is None
    assert not torch.equal(weights(dense), weights(straight))
    assert 0 < straight[0]["wire_bytes"] < 12 * 2 * 4 * weights(dense).numel() / 2
