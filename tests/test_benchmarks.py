"""Benchmarks run, at sizes that are too small to measure, and their tables go to their places in the document."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch

from flare_dist.comm.world import World
from tests.helpers.forked import Forked
from tests.helpers.network import namespaces, why_no_namespaces
from tests.ranks import run_ranks

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
SMALL = {
    "selection.py": ["--numel", "70000", "--turns", "1"],
    "server_step.py": ["--numel", "20000", "--clients", "4", "--density", "0.01", "--turns", "1"],
    "hook_step.py": ["--model", "resnet8", "--batch_size", "2", "--turns", "1", "--steps", "1"],
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
MEAN_OF_TWO = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
value = torch.full((1,), float(dist.get_rank() + 1))
dist.all_reduce(value)
if dist.get_rank() == 0:
    print("sum", value.item())
dist.destroy_process_group()
"""


def run(*arguments: str) -> str:
    """Run a program with this Python, in a fork, and return what it printed."""
    process = Forked([sys.executable, *arguments], ENVIRONMENT, subprocess.PIPE, subprocess.PIPE)
    output, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return output


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_ratios_beside_its_targets(name: str) -> None:
    launcher = TORCHRUN if name == "hook_step.py" else []
    shown = run(*launcher, str(BENCHMARKS / name), *SMALL[name])
    header, rule, *rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert header.rstrip(" |").endswith("target")
    assert rule.count("--") == header.count("|") - 1
    assert any(" x |" in row for row in rows)


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("flash_overhead.py", ["--examples", "4", "--rounds", "1"], "of a local step"),
        ("round_reach.py", [], "top-k: "),
    ],
)
def test_a_benchmark_of_the_package_s_own_functions_runs(name: str, options: list[str], shown: str) -> None:
    assert shown in run(str(BENCHMARKS / name), *options)


def test_what_the_hook_adds_to_a_step_is_shown_beside_a_plain_one() -> None:
    options = ["--steps", "4", "--batch_size", "2"]
    shown = run(*TORCHRUN, str(BENCHMARKS / "hook_trace.py"), *options)
    lines = [line.strip("| ").split(" | ") for line in shown.splitlines() if line.startswith("|")]
    assert lines[-1] == ["ranks with other parameters", "0", "0"]
    counted = {line[0]: line[1] == "no GPU" for line in lines[2:-1]}
    assert list(counted.values()) == [not torch.cuda.is_available()] * 4


def sent_by_each_way(world: World) -> dict[str, tuple[float, float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        ways = importlib.import_module("doors").WAYS
    names = ("plain DDP", "hook, 1 %", "outer, every 30 (DiLoCo)", "outer, every 30 (SparseLoCo)")
    inputs = torch.randn(2, 100)
    return {name: ways[name](torch.nn.Linear(100, 300), inputs) for name in names}


def test_each_way_of_exchanging_sends_what_it_should_a_step() -> None:
    sent = run_ranks(sent_by_each_way, 2)[0]
    dense = 2 * 4 * (100 * 300 + 300)
    assert sent["plain DDP"] == (dense, 1)
    step_told = 2 * 8  # bytes, in a collective of its own
    assert sent["outer, every 30 (DiLoCo)"] == pytest.approx(((dense + step_told) / 30, 2 / 30))
    assert dense / 100 < sent["hook, 1 %"][0] < dense / 50
    assert sent["outer, every 30 (SparseLoCo)"][0] < dense / 30 / 60


def test_clients_as_one_batch_are_compared_with_clients_one_after_another() -> None:
    sizes = ["--clients", "2", "--examples", "6", "12", "--turns", "1"]
    shown = run(str(BENCHMARKS / "cohort.py"), "--model", "2nn", *sizes)
    header, _, row = [line.strip("|").split("|") for line in shown.splitlines() if line.startswith("|")]
    numbers = {name.strip(): value.strip() for name, value in zip(header, row)}
    assert numbers["model"] == "2nn"
    assert float(numbers["times as many"]) > 0
    assert 0 <= float(numbers["largest difference"]) < 1e-6


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_benchmark_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all are small enough to be run here."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert load(name).__doc__


def test_powersgd_has_the_buckets_that_training_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over NCCL one bucket would take away its overlap with backward, and flatter the others."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = load("hook_step")
    caps: list[int | None] = []
    monkeypatch.setattr(benchmark, "build", lambda *_: torch.nn.Linear(2, 2))
    monkeypatch.setattr(benchmark, "LibraryHookState", lambda *_, **__: None)
    monkeypatch.setattr(benchmark, "DistributedDataParallel", MagicMock(side_effect=lambda model, **own: note(own)))

    def note(own: dict[str, int | None]) -> MagicMock:
        caps.append(own["bucket_cap_mb"])
        return MagicMock(parameters=lambda: [torch.nn.Parameter(torch.zeros(1))])

    for backend in ("gloo", "nccl"):
        monkeypatch.setattr(benchmark.dist, "get_backend", lambda backend=backend: backend)
        benchmark.Way("powersgd", "any", 0.01, torch.device("cpu"))
    assert caps[0]
    assert caps[1] is None


def test_tables_replace_only_what_is_between_their_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, document = load("report"), tmp_path / "benchmarks.md"
    document.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nbetween\n<!-- b -->\n<!-- end of b -->\nafter\n")
    monkeypatch.setattr(report, "DOCUMENT", document)
    monkeypatch.setattr(sys, "argv", ["report.py", "a"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("| new \\1 |\n"))
    report.main()
    text = document.read_text()
    assert "| new \\1 |" in text
    assert "old" not in text
    assert text.startswith("before\n<!-- a -->")
    assert text.endswith("between\n<!-- b -->\n<!-- end of b -->\nafter\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit, match="printed nothing"):
        report.main()
    assert document.read_text() == text
    assert "new" in capsys.readouterr().out


def test_every_name_of_the_document_can_be_run() -> None:
    runner, document = (BENCHMARKS / "run.sh").read_text(), (BENCHMARKS.parent / "docs/benchmarks/index.md").read_text()
    names = [line[5:-4] for line in document.splitlines() if line.startswith("<!-- ") and "end of" not in line]
    assert len(names) > 5
    for name in names:
        assert f"<!-- end of {name} -->" in document
        assert re.search(rf"^    (\w+ \| )*{name}( \| \w+)*\)", runner, re.MULTILINE)


def test_a_rank_at_each_end_of_a_cable_is_reached_and_nothing_is_left(tmp_path: Path) -> None:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    before, script = namespaces(), tmp_path / "sum.py"
    script.write_text(MEAN_OF_TWO)
    command = ["bash", str(BENCHMARKS / "veth.sh"), "100mbit", str(script)]
    environment = ENVIRONMENT | {"PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "sum 3.0" in done.stdout
    assert namespaces() == before
