"""Whole runs: resuming is bitwise, damage is noticed, and a run directory is what it says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig, Config, load_config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.models.config import ModelConfig
from flare_dist.records import rundir
from flare_dist.run import trainer
from flare_dist.run.evaluation import evaluate_run
from flare_dist.run.trainer import train
from flare_dist.server.config import ServerConfig
from tests.ranks import run_ranks


def tiny(directory: Path, **changes: Any) -> Config:
    config = Config(
        rounds=6,
        eval_every=2,
        output_dir=str(directory),
        data=DataConfig(
            name="synthetic",
            validation=0.1,
            synthetic=SyntheticConfig(examples=120, test_examples=30, shape=(1, 5, 5), classes=3),
        ),
        clients=ClientsConfig(num=5, per_round=3, batch_size=8, lr=0.05, lr_schedule="cosine"),
        compression=CompressionConfig(density=0.02),
        server=ServerConfig(momentum=0.5),
        checkpoint=CheckpointConfig(every=2),
    )
    return dataclasses.replace(config, **changes)


class Killed(BaseException):
    """Stands for kill -9: nothing that the run could catch."""


def start(config: Config, world_size: int = 1, kill_in_round: int | None = None) -> None:
    """One `train` on `world_size` ranks; `kill_in_round` ends every rank in the middle of that round.

    Round 7 of 6 is the moment between the last checkpoint and the final model.
    """
    if world_size == 1:
        _start(World(), config, kill_in_round)
    else:
        run_ranks(_start, world_size, config, kill_in_round)


def _start(world: World, config: Config, kill_in_round: int | None) -> None:
    play, save = trainer.ROUNDS[config.mode], trainer.save_global

    def play_or_die(round_: int, run: Any) -> dict[str, Any]:
        row = play(round_, run)
        if round_ == kill_in_round:
            raise Killed
        return row

    def save_or_die(path: Path, run: Any) -> None:
        if kill_in_round == config.rounds + 1 and path.name == "model.safetensors":
            raise Killed
        save(path, run)

    class Group:
        """The process group that the test's rank already has."""

        def __enter__(self) -> World:
            return world

        def __exit__(self, *exception: object) -> None: ...

    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, device="cpu", threads=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trainer.ROUNDS, config.mode, play_or_die)
        patch.setattr(trainer, "save_global", save_or_die)
        patch.setattr(trainer, "open_world", lambda *arguments: Group())
        try:
            train(config, Launch(world.rank, world.size, world.rank, world.size), Console(quiet=True))
        except Killed:
            assert kill_in_round is not None


def results(directory: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The final model, and the rows of metrics.jsonl without what clocks measure."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    clocks = ("time", "bucket_sent_after")
    kept = [{k: v for k, v in row.items() if not k.endswith("_seconds") and k not in clocks} for row in rows]
    return load_file(directory / "model.safetensors"), kept


def assert_same_run(one: Path, other: Path, wire: bool = True) -> None:
    (model, rows), (other_model, other_rows) = results(one), results(other)
    assert model.keys() == other_model.keys()
    assert all(torch.equal(model[name], other_model[name]) for name in model)
    assert load_file(one / "best.safetensors").keys() == model.keys()
    if not wire:
        rows, other_rows = (
            [{k: v for k, v in r.items() if k not in ("wire_bytes", "ranks", "collectives")} for r in rs]
            for rs in (rows, other_rows)
        )
    assert rows == other_rows


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank without interruption."""
    directory = tmp_path_factory.mktemp("straight")
    start(tiny(directory))
    return directory


def test_run_directory_is_complete(straight: Path) -> None:
    names = {path.name.split(".out.")[0] for path in straight.iterdir()}
    models = {"model.safetensors", "best.safetensors"}
    assert names == models | {".lock", "config.yaml", "metrics.jsonl", "events", "checkpoints", "summary.json"}
    assert load_config(straight / "config.yaml").engine.threads == 1
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["round-00000004", "round-00000006"]
    _, rows = results(straight)
    assert [row["round"] for row in rows] == list(range(7))
    assert [row["round"] for row in rows if "test_accuracy" in row] == [0, 2, 4, 6]
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["uplink_bytes"] == sum(row.get("uplink_bytes", 0) for row in rows)
    assert summary["test_accuracy"] == rows[-1]["test_accuracy"]
    best = max((row for row in rows if "test_accuracy" in row), key=lambda row: row["validation_accuracy"])
    assert (summary["best_round"], summary["best_accuracy"]) == (best["round"], best["test_accuracy"])


def test_evaluate_reports_what_the_run_measured(straight: Path) -> None:
    summary = json.loads((straight / "summary.json").read_text())
    assert evaluate_run(straight, "final", None) == {name: summary[f"test_{name}"] for name in ("accuracy", "loss")}
    assert evaluate_run(straight, "best", None)["accuracy"] == summary["best_accuracy"]


@pytest.mark.parametrize("kill_in_round", [1, 3, 4, 6, 7])
def test_killed_and_continued_equals_straight(straight: Path, tmp_path: Path, kill_in_round: int) -> None:
    start(tiny(tmp_path), kill_in_round=kill_in_round)
    start(tiny(tmp_path))
    assert_same_run(straight, tmp_path)


@pytest.mark.parametrize("sizes", [(2, 2), (2, 1), (1, 3), (3, 2)])
def test_continued_on_any_number_of_ranks(straight: Path, tmp_path: Path, sizes: tuple[int, int]) -> None:
    first, second = sizes
    start(tiny(tmp_path), first, kill_in_round=5)
    start(tiny(tmp_path), second)
    assert_same_run(straight, tmp_path, wire=False)


@pytest.mark.parametrize("mode", ["centralised", "batchnorm", "adam_server", "dense", "flare", "ef21", "dgc"])
def test_every_kind_of_state_survives(tmp_path: Path, mode: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "centralised": {
            "mode": "centralised",
            "clients": dataclasses.replace(tiny(tmp_path).clients, momentum=0.9),
        },
        "batchnorm": {"model": ModelConfig(name="tests.test_rounds:norm_net", norm="batch")},
        "adam_server": {"server": ServerConfig(optimizer="adam", lr=0.01)},
        "dense": {"compression": CompressionConfig(sparsifier="dense")},
        "flare": {"clients": dataclasses.replace(tiny(tmp_path).clients, objective="flare")},
        "ef21": {"compression": CompressionConfig(density=0.02, error_feedback="ef21")},
        "dgc": {"compression": CompressionConfig(density=0.02, error_feedback="dgc", warmup=(0.5, 0.1) * 2)},
    }
    start(tiny(tmp_path / "straight", **changes[mode]))
    start(tiny(tmp_path / "killed", **changes[mode]), kill_in_round=5)
    start(tiny(tmp_path / "killed", **changes[mode]))
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "flipped" else content[: len(content) // 2])


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("rank", [0, 1])
def test_damaged_file_makes_all_ranks_fall_back(straight: Path, tmp_path: Path, how: str, rank: int) -> None:
    start(tiny(tmp_path), 2, kill_in_round=5)
    newest = tmp_path / "checkpoints" / "round-00000004" / f"rank-{rank:05d}.pt"
    newest.unlink() if how == "missing" else damage(newest, how)
    start(tiny(tmp_path), 2)
    assert_same_run(straight, tmp_path, wire=False)


def test_set_without_manifest_is_not_used(straight: Path, tmp_path: Path) -> None:
    start(tiny(tmp_path), kill_in_round=5)
    (tmp_path / "checkpoints" / "round-00000004" / "manifest.json").unlink()
    start(tiny(tmp_path))
    assert_same_run(straight, tmp_path)


def test_nothing_is_lost_silently_when_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    start(tiny(tmp_path), kill_in_round=5)
    for path in tmp_path.glob("checkpoints/*/rank-00000.pt"):
        damage(path, "flipped")
    with pytest.raises(ValueError, match=r"checkpoint\.resume: no checkpoint in .* is whole"):
        start(tiny(tmp_path))


def test_changed_configuration_is_refused_with_the_keys(straight: Path) -> None:
    changed = tiny(straight, clients=ClientsConfig(num=5, per_round=3, batch_size=8, lr=0.01, lr_schedule="cosine"))
    with pytest.raises(ValueError, match=r"clients\.lr: .* another configuration \(different: clients\.lr\)"):
        start(changed)


def test_keys_that_an_older_version_did_not_have_are_no_change(straight: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(straight, tmp_path / "copy")
    saved = yaml.safe_load((copy / "config.yaml").read_text())
    del saved["compression"]["dense_below"], saved["data"]["normalize"]
    (copy / "config.yaml").write_text(yaml.safe_dump(saved))
    rundir.settle(tiny(copy), 1)
    with pytest.raises(ValueError, match=r"different: compression\.dense_below"):
        rundir.settle(tiny(copy, compression=dataclasses.replace(tiny(copy).compression, dense_below=5)), 1)


def test_a_run_flushes_denormal_floats(tmp_path: Path) -> None:
    tiny_float = torch.tensor([1e-40])
    assert float(tiny_float * 1.0) > 0
    start(tiny(tmp_path / "run", rounds=1))
    assert float(tiny_float * 1.0) == 0


def test_finished_run_says_so_and_changes_nothing(straight: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (straight / "metrics.jsonl").read_text()
    with caplog.at_level("INFO", logger="flare_dist"):
        trainer.log.parent.propagate = True  # type: ignore[union-attr]
        start(tiny(straight))
    assert "is finished" in caplog.text
    assert (straight / "metrics.jsonl").read_text() == before


def test_finished_run_without_checkpoints_is_not_overwritten(straight: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(straight, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    config = (copy / "config.yaml").read_text().replace(str(straight), str(copy))
    (copy / "config.yaml").write_text(config)
    before = (copy / "model.safetensors").stat().st_mtime_ns
    start(tiny(copy))
    assert (copy / "model.safetensors").stat().st_mtime_ns == before


def test_best_model_is_saved_from_the_first_evaluation_on(tmp_path: Path) -> None:
    """With a learning rate this small nothing beats the initial model."""
    config = tiny(tmp_path, clients=dataclasses.replace(tiny(tmp_path).clients, lr=1e-12))
    start(config)
    assert json.loads((tmp_path / "summary.json").read_text())["best_round"] == 0
    assert evaluate_run(tmp_path, "best", None) == evaluate_run(tmp_path, "final", None)


def test_files_of_an_unfinished_set_are_not_mixed_into_another(straight: Path, tmp_path: Path) -> None:
    """Two ranks were killed before the manifest of round 4; one rank then saves round 4 alone."""
    start(tiny(tmp_path), 2, kill_in_round=5)
    (tmp_path / "checkpoints" / "round-00000004" / "manifest.json").unlink()
    start(tiny(tmp_path), 1, kill_in_round=5)
    assert [path.name for path in (tmp_path / "checkpoints" / "round-00000004").glob("rank-*")] == ["rank-00000.pt"]
    start(tiny(tmp_path), 3)
    assert_same_run(straight, tmp_path, wire=False)


def test_settings_of_optimizers_come_from_the_configuration_not_from_the_checkpoint(
    straight: Path, tmp_path: Path
) -> None:
    def last_model(name: str, **server: Any) -> dict[str, torch.Tensor]:
        resume = CheckpointConfig(every=2, resume=str(straight))
        start(tiny(tmp_path / name, rounds=8, server=ServerConfig(**server), checkpoint=resume))
        return load_file(tmp_path / name / "model.safetensors")

    same, other = last_model("same", momentum=0.5), last_model("other", momentum=0.9)
    assert not torch.equal(same["1.weight"], other["1.weight"])
    with pytest.raises(ValueError, match=r"server\.optimizer: the checkpoint holds the state of sgd, not of adam"):
        last_model("adam", optimizer="adam", lr=0.01)


def test_error_feedback_can_be_switched_on_or_off_in_a_continued_run(straight: Path, tmp_path: Path) -> None:
    resume = CheckpointConfig(every=2, resume=str(straight))
    start(tiny(tmp_path / "off", rounds=8, compression=CompressionConfig(sparsifier="dense"), checkpoint=resume))
    resume = CheckpointConfig(every=2, resume=str(tmp_path / "off"))
    start(tiny(tmp_path / "on", rounds=10, compression=CompressionConfig(density=0.02), checkpoint=resume))
    assert len(results(tmp_path / "on")[1]) == 11


def test_repeating_the_command_that_continues_another_run_continues_it(straight: Path, tmp_path: Path) -> None:
    longer = tiny(tmp_path, rounds=9, checkpoint=CheckpointConfig(every=2, resume=str(straight)))
    start(longer, kill_in_round=9)
    start(longer)
    assert [row["round"] for row in results(tmp_path)[1]] == list(range(10))


def test_files_of_others_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("somebody's own")
    with pytest.raises(ValueError, match=r"output_dir: .* holds config.yaml of something that is not a run"):
        start(tiny(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == "somebody's own"


def test_a_run_killed_before_its_first_round_is_started_anew(tmp_path: Path) -> None:
    with rundir.claim(tmp_path):
        rundir.write_config(tmp_path, tiny(tmp_path))
    start(tiny(tmp_path))
    assert (tmp_path / "summary.json").exists()


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    with rundir.claim(tmp_path), pytest.raises(ValueError, match=r"output_dir: another run is writing"):
        start(tiny(tmp_path))
    start(tiny(tmp_path))


def test_a_run_that_came_in_between_is_not_overwritten(straight: Path, tmp_path: Path) -> None:
    """It started and ended while this one was still reading its data."""
    copy = shutil.copytree(straight, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"output_dir: another run has written to .* while this one was starting"):
        rundir.claim(copy, held=False)
    with rundir.claim(copy, held=True):
        pass


def test_fewer_rounds_than_the_other_run_has_played_are_refused(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rounds: .* has played 6 rounds already"):
        start(tiny(tmp_path, rounds=6, checkpoint=CheckpointConfig(resume=str(straight))))


@pytest.mark.parametrize(("steps", "warned"), [(None, False), (3, False), (4, True)])
def test_more_regularised_steps_than_there_are_is_worth_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int | None, warned: bool
) -> None:
    """Each of the five clients has 108 / 5 examples, hence three batches of eight."""
    config = tiny(tmp_path, rounds=1)
    flare = dataclasses.replace(config.clients.flare, steps=steps)
    start(dataclasses.replace(config, clients=dataclasses.replace(config.clients, objective="flare", flare=flare)))
    said = "clients.flare.steps: more than the local steps of a round, got 4 with local_steps=3; all are regularised"
    assert (said in caplog.messages) is warned


def test_an_objective_without_clients_is_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny(tmp_path, rounds=1, mode="centralised")
    start(dataclasses.replace(config, clients=dataclasses.replace(config.clients, objective="fedprox")))
    assert any(
        message.startswith("mode: clients.objective and step_ahead have no effect") for message in caplog.messages
    )


def test_momentum_twice_is_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny(tmp_path, rounds=1, compression=CompressionConfig(density=0.02, error_feedback="dgc"))
    start(dataclasses.replace(config, clients=dataclasses.replace(config.clients, momentum=0.9)))
    assert any(message.startswith("clients.momentum: dgc has its own momentum") for message in caplog.messages)


def test_buffers_that_a_model_replaces_or_never_touches(tmp_path: Path) -> None:
    """A running mean that is assigned anew, a counter, a constant, and a mask of minus infinity."""
    config = tiny(tmp_path / "one", model=ModelConfig(name="tests.test_trainer:OwnBuffers", norm="batch"))
    start(config)
    start(dataclasses.replace(config, output_dir=str(tmp_path / "two")), 2)
    assert_same_run(tmp_path / "one", tmp_path / "two", wire=False)
    model = load_file(tmp_path / "two" / "model.safetensors")
    fresh = OwnBuffers((1, 5, 5), 3)
    assert model["running"].any()
    assert torch.equal(model["constant"], fresh.constant)
    assert torch.equal(model["mask"], fresh.mask)


class OwnBuffers(torch.nn.Module):
    """A linear model with buffers of every kind."""

    running: torch.Tensor
    count: torch.Tensor
    constant: torch.Tensor
    mask: torch.Tensor

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        features = input_shape[0] * input_shape[1] * input_shape[2]
        self.linear = torch.nn.Linear(features, num_classes)
        self.register_buffer("running", torch.zeros(features))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("constant", torch.arange(features) / 7)
        self.register_buffer("mask", torch.full((3,), -torch.inf))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.flatten(1)
        if self.training:
            self.running = 0.9 * self.running + 0.1 * flat.detach().mean(0)
            self.count = self.count + 1
        return self.linear(flat - self.running + 0 * self.constant)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("name", ["2nn", "tests.test_rounds:norm_net"])
def test_a_run_of_an_older_version_goes_on_with_its_norms(name: str, norm: str, tmp_path: Path) -> None:
    """Its configuration says group, the default of then, or batch; the command that continues it says nothing."""
    config = tiny(tmp_path / "run", model=ModelConfig(name, norm=norm))
    straight_through = dataclasses.replace(config, output_dir=str(tmp_path / "straight"))
    start(straight_through)
    start(config, kill_in_round=5)
    written = tmp_path / "run" / rundir.CONFIG
    saved = yaml.safe_load(written.read_text())
    saved["model"]["norm"] = norm
    del saved["clients"]["smallest_batch"]
    written.write_text(yaml.safe_dump(saved))
    start(dataclasses.replace(config, model=ModelConfig(name)))
    assert_same_run(tmp_path / "run", tmp_path / "straight")
    assert ("1.running_mean" in load_file(tmp_path / "run" / rundir.MODEL)) == (name != "2nn" and norm == "batch")


class OfEveryDtype(torch.nn.Module):
    """A linear model with buffers of many dtypes, some of which its operations ask for."""

    third: torch.Tensor
    count: torch.Tensor
    mean: torch.Tensor
    halved: torch.Tensor
    least: torch.Tensor

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        features = input_shape[0] * input_shape[1] * input_shape[2]
        self.linear = torch.nn.Linear(features, num_classes)
        self.register_buffer("third", torch.full((features, features), 1 / 3, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("halved", torch.ones(features, dtype=torch.float16))
        self.register_buffer("least", torch.full((features,), torch.inf))
        self.register_buffer("huge", torch.tensor(1e300, dtype=torch.float64))
        self.register_buffer("brief", torch.ones(2, dtype=torch.bfloat16) / 3)
        self.register_buffer("tiny", torch.ones(2).to(torch.float8_e4m3fn))
        self.register_buffer("wave", torch.ones(2, dtype=torch.complex64) / 3)
        self.register_buffer("keep", torch.ones(2, dtype=torch.bool))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("turned", torch.arange(6).view(2, 3).t())
        self.register_buffer("repeated", torch.arange(3).expand(2, 3))
        self.register_buffer("waves", torch.ones(2, dtype=torch.complex128), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.flatten(1)
        if self.training:
            self.count += 1
            self.mean.mul_(0.9).add_(flat.detach().double().mean(0), alpha=0.1)
            self.halved = 0.9 * self.halved + 0.1 * flat.detach().half().mean(0)
            self.least.copy_(torch.minimum(self.least, flat.detach().amin(0)))
        moved = flat.double() @ self.third - self.mean
        return self.linear(moved.float() + self.halved + self.least.clamp(max=0))


@pytest.mark.parametrize("mode", ["federated", "gradient"])
def test_the_saved_model_has_the_user_s_dtypes(tmp_path: Path, mode: str) -> None:
    """Float64 constants keep all their digits, and what is minus or plus infinity begins anew with each client."""
    config = tiny(tmp_path / "one", mode=mode, model=ModelConfig(name="tests.test_trainer:OfEveryDtype", norm="batch"))
    if mode == "federated":
        start(config)
        start(dataclasses.replace(config, output_dir=str(tmp_path / "two")), 2)
        assert_same_run(tmp_path / "one", tmp_path / "two", wire=False)
    else:
        start(config, 3)
    saved, fresh = load_file(tmp_path / "one" / "model.safetensors"), OfEveryDtype((1, 5, 5), 3)
    assert {name: value.dtype for name, value in saved.items()} == {n: v.dtype for n, v in fresh.state_dict().items()}
    for name in ("third", "huge", "brief", "tiny", "wave", "keep", "turned", "repeated"):
        assert saved[name].tolist() == fresh.get_buffer(name).tolist(), name
    assert saved["mean"].any()
    assert (saved["halved"] != 1).any()
    fresh.load_state_dict(saved, assign=True)  # copying is refused by an expanded tensor
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert evaluate_run(tmp_path / "one", "final", None) == {
        name: summary[f"test_{name}"] for name in ("accuracy", "loss")
    }


def test_never_starts_over(straight: Path, tmp_path: Path) -> None:
    start(tiny(tmp_path, seed=1))
    (tmp_path / "notes.txt").write_text("the user's own")
    start(tiny(tmp_path, checkpoint=CheckpointConfig(every=2, resume="never")))
    assert_same_run(straight, tmp_path)
    assert (tmp_path / "notes.txt").exists()


def test_path_continues_another_run_under_a_changed_configuration(straight: Path, tmp_path: Path) -> None:
    source = shutil.copytree(straight, tmp_path / "source")
    longer = tiny(tmp_path / "longer", rounds=8, checkpoint=CheckpointConfig(every=2, resume=str(source)))
    start(longer)
    _, rows = results(tmp_path / "longer")
    assert [row["round"] for row in rows] == list(range(9))
    assert rows[:7] == results(straight)[1]
    other = dataclasses.replace(longer, checkpoint=CheckpointConfig(every=2, resume=str(straight)))
    with pytest.raises(ValueError, match=r"checkpoint\.resume: .* already holds a run"):
        start(other)


def test_another_model_is_refused(straight: Path, tmp_path: Path) -> None:
    other = tiny(tmp_path, model=ModelConfig(name="cnn"), checkpoint=CheckpointConfig(resume=str(straight)))
    with pytest.raises(ValueError, match=r"checkpoint\.resume: .* holds another model"):
        start(other)


def test_all_checkpoints_but_the_last_two_are_removed(tmp_path: Path) -> None:
    start(tiny(tmp_path, checkpoint=CheckpointConfig(every=1, keep=3)))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def start_in_own_directory(world: World, root: Path) -> str:
    """A run whose ranks are given different directories, as on nodes without a shared disk."""
    (root / str(world.rank)).mkdir()
    with pytest.raises(ValueError, match="output_dir") as caught:
        _start(world, tiny(root / str(world.rank)), None)
    return str(caught.value)


def test_nodes_without_a_shared_directory_are_refused(tmp_path: Path) -> None:
    messages = run_ranks(start_in_own_directory, 2, tmp_path)
    assert all("is not shared by all nodes" in message for message in messages)
