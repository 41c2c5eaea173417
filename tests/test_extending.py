"""The examples of the guides, in a directory of the user's: every one trains; all together resume bitwise."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from flare_dist import cli
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.config.load import with_arguments
from flare_dist.imported import look_in
from flare_dist.studies import sweep_run
from tests.helpers.runs import assert_same_run, data_parallel, start, start_rank
from tests.ranks import run_ranks

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
TABLE = (GUIDES / "extending.md").read_text()
# In the order of the file mine.py that they are together; ```py marks what is no part of it.
NAMES = ("extending", "data", "model", "loss", "algorithm", "optimizer", "sparsifier")
PAGE = "\n".join((GUIDES / f"{name}.md").read_text() for name in NAMES)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LINES = re.findall(r"^    (--.*)$", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL), re.MULTILINE)
TINY = [
    *("--rounds=2", "--clients.num=4", "--clients.batch_size=20", "--clients.lr=0.05", "--engine.threads=1"),
    *("--engine.device=cpu", "--data.name=synthetic", "--compression.density=0.1"),
    "--data.synthetic={examples: 120, test_examples: 30, shape: [1, 5, 5], classes: 3, groups: 6}",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write mine.py into a directory outside the package."""
    directory = tmp_path_factory.mktemp("project")
    (directory / "mine.py").write_text("\n\n".join(BLOCKS))
    return directory


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start there, and forget the user's module afterwards."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != ""])
    yield
    sys.modules.pop("mine", None)


def words(line: str) -> list[str]:
    """Divide a line of the page as a shell would, but for braces, which need quotation marks there."""
    return re.findall(r"\{.*?\}|\S+", line)


def train(directory: Path, *arguments: str) -> Path:
    assert cli.main(["train", *TINY, f"--output_dir={directory}", *arguments]) == 0
    return directory


def outcome(directory: Path) -> tuple[dict[str, torch.Tensor], int]:
    summary = json.loads((directory / "summary.json").read_text())
    return load_file(directory / "model.safetensors"), summary["uplink_bytes"]


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("built_in") / "run")


def saved(directory: Path, key: str) -> Any:
    value: Any = yaml.safe_load((directory / "config.yaml").read_text())
    for name in key.split("."):
        value = value[name]
    return value


def test_every_key_of_the_table_has_an_example_of_at_most_fifteen_lines() -> None:
    rows = [row for row in TABLE.splitlines() if row.startswith("| `")]
    keys = {key for row in rows for key in re.findall(r"`(\w+\.\w+)`", row.split("|")[1])}
    assert keys == {words(line)[0].removeprefix("--") for line in LINES}
    assert all(len(block.strip().splitlines()) <= 15 for block in BLOCKS)


@pytest.mark.parametrize("line", LINES)
def test_each_example_trains_otherwise_than_what_is_built_in(line: str, built_in: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", *words(line))
    expected, nbytes = outcome(built_in)
    found, own_nbytes = outcome(run)
    is_same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert not is_same or own_nbytes != nbytes
    key, name, *options = words(line)
    assert saved(run, key.removeprefix("--")) == name
    assert saved(run, "code_dirs") == [str(Path.cwd())]
    for own, text in zip(options[::2], options[1::2]):
        assert saved(run, own.removeprefix("--")) == yaml.safe_load(text.replace("1e-3", "0.001"))


def everything(directory: Path) -> Config:
    """Configure a run of all examples at once."""
    keys = [word for line in LINES for word in words(line)]
    config = with_arguments(Config(), [*TINY, *keys, "--rounds=6", "--checkpoint.every=2"])
    return dataclasses.replace(config, output_dir=str(directory))


def start_there(world: World, project: str, config: Config, kill_in_round: int | None = None) -> None:
    look_in([project])
    start_rank(world, config, kill_in_round)


def test_all_examples_together_resume_and_run_on_two_ranks_with_the_same_bits(project: Path, tmp_path: Path) -> None:
    config = everything(tmp_path / "straight")
    start(config)
    halved = dataclasses.replace(config, output_dir=str(tmp_path / "halved"))
    start(halved, kill_in_round=5)
    assert not (tmp_path / "halved" / "summary.json").exists()
    start(halved)
    assert_same_run(tmp_path / "straight", tmp_path / "halved")
    run_ranks(start_there, 2, str(project), dataclasses.replace(config, output_dir=str(tmp_path / "two")))
    assert_same_run(tmp_path / "straight", tmp_path / "two", wire=False)


def test_an_optimizer_of_steps_goes_on_where_it_was(project: Path, tmp_path: Path) -> None:
    straight = data_parallel(tmp_path / "straight")
    options = {"weight_decay": 0.01}
    clients = dataclasses.replace(straight.clients, optimizer="mine:decayed", optimizer_options=options, momentum=0.0)
    straight = dataclasses.replace(straight, clients=clients)
    halved = dataclasses.replace(straight, output_dir=str(tmp_path / "halved"))
    run_ranks(start_there, 2, str(project), straight)
    run_ranks(start_there, 2, str(project), halved, 3)
    run_ranks(start_there, 2, str(project), halved)
    assert_same_run(tmp_path / "straight", tmp_path / "halved")


def test_another_option_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", "--model.name=mine:mlp", "--model.options.width=4")
    capsys.readouterr()
    assert cli.main(["train", *TINY, f"--output_dir={run}", "--model.name=mine:mlp", "--model.options.width=5"]) == 2
    assert f"model.options.width: {run} holds a run with another configuration" in capsys.readouterr().err


def test_a_run_is_evaluated_and_resumed_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [word for line in LINES if "data.name" in line or "model.name" in line for word in words(line)]
    run = train(tmp_path / "run", *lines)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    for command in (
        ["evaluate", str(run)],
        ["train", *TINY, *lines, f"--output_dir={run}"],
        ["train", *TINY, *lines, f"--checkpoint.resume={run}", f"--output_dir={tmp_path / 'more'}", "--rounds=3"],
    ):
        sys.modules.pop("mine")
        monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "mine.py").exists()])
        assert cli.main(command) == 0
    accuracy = json.loads((run / "summary.json").read_text())["test_accuracy"]
    assert f"test accuracy {accuracy:.4f}" in capsys.readouterr().out
    assert json.loads((tmp_path / "more" / "metrics.jsonl").read_text().splitlines()[-1])["round"] == 3


def test_a_loss_and_a_metric_are_found_from_another_directory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "judging.py").write_text(
        "import torch, torchmetrics\n"
        "def loss(outputs, labels):\n    return torch.nn.functional.cross_entropy(outputs, labels)\n"
        "def top2(classes):\n    return torchmetrics.classification.MulticlassAccuracy(classes, top_k=2)\n"
    )
    for key, name in {"loss": "judging:loss", "metrics": "[judging:top2]"}.items():
        monkeypatch.chdir(tmp_path / "there")
        run = train(tmp_path / key, f"--task.{key}={name}")
        assert saved(run, "code_dirs") == [str(tmp_path / "there")]
        sys.modules.pop("judging")
        monkeypatch.setattr(sys, "path", [place for place in sys.path if not place.endswith("there")])
        monkeypatch.chdir(tmp_path)
        assert cli.main(["evaluate", str(run)]) == 0
        sys.modules.pop("judging")


def test_without_a_trace_of_the_module_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "mine.py").exists()])
    assert cli.main(["train", *TINY, "--model.name=mine:mlp"]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: model.name: cannot import 'mine:mlp': there is no module 'mine' in {tmp_path}; start the command "
        "where it lies, or install it (code_dirs names other directories)\n"
    )


def test_a_module_beside_the_configuration_file_or_in_code_dirs_is_found(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "my.yaml").write_text("model: {name: 'mine:mlp', options: {width: 4}}\n")
    monkeypatch.chdir(tmp_path)
    first = train(tmp_path / "beside", f"--config={project / 'my.yaml'}", "--model.options.dropout", "0.5")
    assert saved(first, "model.options") == {"width": 4, "dropout": 0.5}
    sys.modules.pop("mine")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(project)])
    second = train(tmp_path / "named", f"--code_dirs=[{project}]", "--model.name=mine:mlp")
    assert saved(first, "code_dirs") == saved(second, "code_dirs") == [str(project)]


def test_a_sweep_tries_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], output: Path) -> int:
        output.touch()
        return cli.main(command[3:])  # behind python -m flare_dist

    monkeypatch.setattr(sweep_run, "_run", run)
    grid = ["--grid", "model.options.width=4,8", "--grid", "clients.lr_schedule_options.length=2,3"]
    names = ["--model.name=mine:mlp", "--clients.lr_schedule=mine:warmup"]
    assert cli.main(["sweep", *TINY, *names, *grid, f"--output_dir={tmp_path / 'sweep'}"]) == 0
    runs = sorted(path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    widths = [saved(run, "model.options.width") for run in runs]
    assert sorted(widths) == [4, 4, 8, 8]
    assert {saved(run, "clients.lr_schedule_options.length") for run in runs} == {2, 3}
    assert {len(outcome(run)[0]["1.bias"]) for run in runs} == {4, 8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.options.widht", "3"], "model.options.widht: mine:mlp takes no such option, got 3; did you mean"),
        (["--model.options.width", "{"], "model.options.width: expected a value as in YAML, got {"),
        (["--model.name=mine:ml"], "model.name: cannot import 'mine:ml': mine has no 'ml'; did you mean mine:mlp?"),
        (["--model.name=mine:warmup"], "model.name: cannot build mine:warmup for inputs of shape"),
        (["--task.name=mine:prox"], "task.name: mine:prox must return a flare_dist.Task, got Algorithm; for"),
        (["--data.name=mine:damped"], "data.name: mine:damped is called as mine:damped(config, seed, **options)"),
        (["--clients.objective=mine:smooth"], "clients.objective: mine:smooth must return a flare_dist.Algorithm, got"),
        (["--clients.optimizer=mine:uneven"], "clients.optimizer_options.num_clients: mine:uneven needs it"),
        (["--clients.optimizer=mine:decayed", "--clients.momentum=0.9"],
         "clients.momentum: your own optimizer takes options alone, got 0.9 with clients.optimizer="),
        (["--server.lr_schedule=mine:warmup", "--server.lr_schedule_options.length=0"],
         "server.lr_schedule: mine:warmup fails: ZeroDivisionError"),
        (["--clients.lr_schedule=mine:warmup", "--clients.lr_schedule_options.length=-1"],
         "clients.lr_schedule: mine:warmup must return a number of at least 0, got -1.0 in round 1 of 2"),
        (["--data.partition=mine:uneven", "--data.partition_options.ratio=-2"], "data.partition: mine:uneven fails: "),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_training(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = [] if any(own.startswith("--model.name") for own in arguments) else ["--model.name=mine:mlp"]
    assert cli.main(["train", *TINY, *name, f"--output_dir={tmp_path / 'run'}", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
