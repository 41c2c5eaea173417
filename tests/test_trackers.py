"""Weights & Biases offline and MLflow with a store of files: a resumed run goes on there, without repetition."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from flare_dist.config.config import Config
from flare_dist.config.saved import as_dict
from flare_dist.records import rundir
from flare_dist.records.trackers import Point, TrackedRun, check_installed, mlflow_tracker, wandb_tracker

needs_wandb = pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
needs_mlflow = pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
BLOCK = 32768  # bytes of a block of W&B's files, which are LevelDB's logs
HEAD = 7  # bytes of a header, of a record as of the file


def point(round_: int) -> Point:
    return Point(round_, 1000.5 + round_, {"accuracy/test": round_ / 10, "density/0.weight": 0.5})


def run(directory: Path, *earlier: int) -> TrackedRun:
    return TrackedRun(directory, as_dict(Config(rounds=5)), [point(round_) for round_ in earlier])


def play(tracker: Any, tracked: TrackedRun, *rounds: int) -> None:
    with tracker(tracked) as send:
        for round_ in rounds:
            send(point(round_))


def records(path: Path) -> Iterator[Any]:
    """Read the records of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    place = HEAD
    whole = b""
    while place + HEAD <= len(data):
        if BLOCK - place % BLOCK < HEAD:  # no header fits into the rest of a block
            place += BLOCK - place % BLOCK
            continue
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        kind = data[place + 6]
        whole += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (1, 4):  # a full record, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def finished(path: Path) -> list[Any]:
    """Wait until the service of W&B, a process of its own, has written the end of a run; returns its records."""
    until = time.monotonic() + 30
    found: list[Any] = []
    while not any(record.HasField("exit") for record in found):
        assert time.monotonic() < until, f"{path} does not end"
        time.sleep(0.05)
        found = list(records(path))
    return found


def history(path: Path) -> dict[int, dict[str, str]]:
    """Return what an offline run has logged, by step."""
    found = {}
    for record in finished(path):
        if record.HasField("history"):
            values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            found[record.history.step.num] = values
    return found


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    directory = tmp_path / "mine"
    directory.mkdir()
    return directory


@needs_wandb
@pytest.mark.filterwarnings("default")  # of other people's code
def test_an_offline_run_of_wandb_goes_on_under_its_name_and_is_whole(offline: Path) -> None:
    play(wandb_tracker, run(offline, 0), 1, 2)
    name = (offline / "wandb.run").read_text()
    (first,) = offline.glob("wandb/offline-run-*/*.wandb")
    assert first.name == f"run-{name}.wandb"
    heard = history(first)
    assert sorted(heard) == [0, 1, 2]
    assert heard[2]["accuracy/test"] == "0.2"
    assert heard[2]["density/0.weight"] == "0.5"
    told = next(record.run for record in records(first) if record.HasField("run"))
    assert (told.run_id, told.project, told.display_name) == (name, "flare_dist", "mine")
    assert "clients" in {item.key for item in told.config.update}

    play(wandb_tracker, run(offline, 0, 1, 2), 3, 4)
    (second,) = set(offline.glob("wandb/offline-run-*/*.wandb")) - {first}
    assert second.name == first.name
    assert sorted(history(second)) == [0, 1, 2, 3, 4]


def test_without_a_login_wandb_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def login(prompt: bool) -> bool:
        asked.append(prompt)
        return False

    library: Any = ModuleType("wandb")
    library.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
    library.login = login
    monkeypatch.setitem(sys.modules, "wandb", library)
    with pytest.raises(ValueError, match="there is no login; run wandb login, or set WANDB_MODE=offline"):
        play(wandb_tracker, run(tmp_path))
    assert asked == [False]  # nobody is asked for a key while the run goes on
    assert not (tmp_path / "wandb.run").exists()


def test_wandb_online_gets_only_the_rounds_that_it_has_not_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    ends: list[int] = []
    opened = SimpleNamespace(step=2)  # as the server has it
    opened.log = lambda values, step: heard.append(step)
    opened.finish = lambda exit_code=0: ends.append(exit_code)
    asked: dict[str, Any] = {}

    def init(**arguments: Any) -> Any:
        asked.update(arguments)
        return opened

    library: Any = ModuleType("wandb")
    library.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
    library.login = lambda prompt: True
    library.init = init
    library.Settings = dict
    monkeypatch.setitem(sys.modules, "wandb", library)
    (tmp_path / "wandb.run").write_text("abc")
    play(wandb_tracker, run(tmp_path, 0, 1, 2), 3)
    assert heard == [2, 3]
    assert ends == [0]
    assert (asked["id"], asked["resume"]) == ("abc", "allow")
    with pytest.raises(OSError, match="away"), wandb_tracker(run(tmp_path)):
        raise OSError("away")
    assert ends == [0, 1]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an MLflow store of files."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    from mlflow import MlflowClient

    return MlflowClient()


def steps(store: Any, name: str, key: str = "accuracy/test") -> list[tuple[int, float, int]]:
    return [(metric.step, metric.value, metric.timestamp) for metric in store.get_metric_history(name, key)]


@needs_mlflow
@pytest.mark.filterwarnings("default")
def test_a_run_of_mlflow_goes_on_without_repetition(tmp_path: Path, store: Any) -> None:
    directory = tmp_path / "mine"
    directory.mkdir()
    with pytest.raises(KeyboardInterrupt), mlflow_tracker(run(directory, 0)) as send:  # noqa: PT012
        send(point(1))
        send(point(2))
        raise KeyboardInterrupt
    name = (directory / "mlflow.run").read_text()
    logged = store.get_run(name)
    assert logged.info.status == "FAILED"
    assert logged.info.run_name == "mine"
    assert store.get_experiment(logged.info.experiment_id).name == "flare_dist"
    assert logged.data.params["clients.lr"] == str(Config().clients.lr)
    assert len(logged.data.params) > 100  # more than one request takes

    play(mlflow_tracker, run(directory, 0, 1), 2, 3)  # round 2 is played again
    assert store.get_run(name).info.status == "FINISHED"
    assert steps(store, name) == [(r, r / 10, 1000500 + 1000 * r) for r in range(4)]
    assert [step for step, _, _ in steps(store, name, "density/0.weight")] == [0, 1, 2, 3]


@needs_mlflow
@pytest.mark.filterwarnings("default")
def test_mlflow_takes_groups_of_any_name_and_number(tmp_path: Path, store: Any) -> None:
    names = ["a|b", "ü", "", "..", "c//d", *map(str, range(1000))]
    with mlflow_tracker(run(tmp_path)) as send:
        send(Point(1, 1000.0, {f"accuracy_by_group/{name}": 0.5 for name in names}))
    logged = store.get_run((tmp_path / "mlflow.run").read_text()).data.metrics
    assert len(logged) == len(names) + 1
    assert (
        logged["accuracy_by_group/a_7c_b"] == logged["accuracy_by_group/ü"] == logged["accuracy_by_group/_.._"] == 0.5
    )


@needs_mlflow
@pytest.mark.filterwarnings("default")
def test_another_store_of_mlflow_gets_the_whole_run(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(mlflow_tracker, run(tmp_path), 0, 1)
    name = (tmp_path / "mlflow.run").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "others").as_uri())
    play(mlflow_tracker, run(tmp_path, 0, 1), 2)
    other = (tmp_path / "mlflow.run").read_text()
    assert other != name
    assert [step for step, _, _ in steps(type(store)(), other)] == [0, 1, 2]


def test_a_tracker_that_is_not_installed_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed(["tensorboard"])
    with pytest.raises(ValueError, match=r"^tracking: mlflow is not installed; run pip install 'flare_dist\[mlflow\]'"):
        check_installed(["tensorboard", "mlflow"])


def test_the_file_of_mlflow_needs_what_mlflow_skinny_does_not_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    check_installed(["mlflow"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    check_installed(["wandb"])
    with pytest.raises(ValueError, match=r"^tracking: mlflow's \./mlflow\.db needs sqlalchemy, which .* 'flare_dist\["):
        check_installed(["mlflow"])


def test_a_run_that_starts_over_is_another_one_for_trackers(tmp_path: Path) -> None:
    for name in rundir.TRACKED:
        (tmp_path / name).write_text("abc")
    rundir.clear(tmp_path)
    assert not list(tmp_path.iterdir())
