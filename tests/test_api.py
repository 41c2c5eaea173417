"""Runs from Python: objects instead of names, and nothing of the caller's that is changed."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import yaml
from torch import nn

import flare_dist
from flare_dist.config.config import Config
from flare_dist.config.saved import as_dict
from flare_dist.config.settings import make_config
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.forked import Forked
from tests.helpers.launching import finished
from tests.scripts.from_python import net, source

TINY: dict[str, Any] = {
    "rounds": 2,
    "clients": {"num": 4, "batch_size": 10, "lr": 0.1},
    "compression": {"density": 0.2},
}
SCRIPT = Path(__file__).parent / "scripts" / "from_python.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> flare_dist.FinishedRun:
    return flare_dist.train(TINY, data=source(), model=net(), output_dir=tmp_path_factory.mktemp("run"))


def launched(directory: Path, ranks: int, *arguments: str) -> str:
    """Run the script on so many ranks; returns what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    pipe = subprocess.PIPE
    return finished(Forked([*command, str(SCRIPT), str(directory), *arguments], None, pipe, pipe))


def test_what_a_run_leaves_behind_can_be_read(run: flare_dist.FinishedRun) -> None:
    assert [row["round"] for row in run.metrics] == [0, 1, 2]
    assert run.summary["rounds"] == 2
    assert len(run.clients) == 2 * 4
    assert isinstance(run.frame(), pandas.DataFrame)
    assert list(run.frame()["test_accuracy"]) == [row["test_accuracy"] for row in run.metrics]
    assert flare_dist.evaluate(run)["accuracy"] == run.metrics[-1]["test_accuracy"]
    trained = run.model()
    assert not trained.training
    inputs, labels = source().test.tensors  # type: ignore[union-attr]
    accuracy = (trained(inputs).argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(run.metrics[-1]["test_accuracy"])


def test_the_caller_s_threads_draws_loggers_and_model_are_left_as_they_were(tmp_path: Path) -> None:
    model = net()
    weights = [parameter.clone() for parameter in model.parameters()]
    handlers = list(logging.getLogger().handlers)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    two: dict[str, Any] = {"engine.threads": 2}
    flare_dist.train(TINY, data=source(), model=model, output_dir=tmp_path, **two)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert (torch.tensor([1e-40]) * 1.0).count_nonzero()  # denormal numbers
    assert logging.getLogger().handlers == handlers
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters()))
    assert model.training


def test_callbacks_get_each_round_and_who_took_part(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    flare_dist.train(
        TINY,
        data=source(),
        model=net(),
        output_dir=tmp_path,
        on_round=[rows.append, lambda row: numbers.append(row["round"])],
    )
    assert numbers == [1, 2]
    assert [line["client"] for line in rows[0]["participants"]] == [0, 1, 2, 3]
    assert rows[1]["test_accuracy"] is not None


def test_an_error_in_a_callback_is_the_caller_s(tmp_path: Path) -> None:
    def stop(row: dict[str, Any]) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        flare_dist.train(TINY, data=source(), model=net(), output_dir=tmp_path, on_round=stop)


def test_ranks_give_the_bits_of_one(run: flare_dist.FinishedRun, tmp_path: Path) -> None:
    assert launched(tmp_path / "two", 2).split("\n")[:-1].count("rounds [1, 2]") == 1
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == (run.directory / "model.safetensors").read_bytes()
    assert launched(tmp_path / "all", 2, "all").count("rounds [1, 2]") == 2


def test_a_run_from_python_says_so_and_goes_on_with_the_same_objects(tmp_path: Path) -> None:
    first = flare_dist.train(TINY, data=source(), model=net(), output_dir=tmp_path / "first")
    saved = yaml.safe_load((first.directory / "config.yaml").read_text())
    assert saved["model"]["name"] == "python:Sequential"
    assert saved["data"]["name"] == "python:Source"
    message = (
        "model.name: .*the run was given Sequential from Python; give it again: flare_dist.train\\(run, model=...\\)"
    )
    with pytest.raises(ValueError, match=message):
        flare_dist.evaluate(first.directory, data=source())
    again = flare_dist.evaluate(first.directory, data=source(), model=net())
    assert again["accuracy"] == first.summary["test_accuracy"]
    resumed: dict[str, Any] = {"checkpoint.resume": str(first.directory)}
    longer = flare_dist.train(
        first,
        data=source(),
        model=net(),
        rounds=4,
        output_dir=tmp_path / "longer",
        **resumed,
    )
    straight = flare_dist.train(TINY | {"rounds": 4}, data=source(), model=net(), output_dir=tmp_path / "straight")
    models = [(one.directory / "model.safetensors").read_bytes() for one in (longer, straight)]
    assert models[0] == models[1]


def test_a_run_from_python_is_exported_with_the_same_objects(run: flare_dist.FinishedRun, tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    path, beside = flare_dist.export(run, tmp_path / "model.pt", format="pt")
    plain.load_state_dict(torch.load(path, weights_only=True))
    inputs = source().test.tensors[0]  # type: ignore[union-attr]
    assert torch.equal(plain(inputs), run.model()(inputs))
    assert beside.name == "model.preprocessing.json"
    with pytest.raises(ValueError, match=r"flare_dist\.export\(run, PATH, model=\.\.\.\) writes it"):
        flare_dist.export(run.directory, tmp_path / "other.onnx", format="onnx", data=source())
    flare_dist.export(run.directory, tmp_path / "other.pt", format="pt", which="best", data=source(), model=net())
    with pytest.raises(ValueError, match=r"^to: .* is a directory; name a file in it"):
        flare_dist.export(run, tmp_path)
    with pytest.raises(ValueError, match=r"^format: unknown choice, got 'safetensor'; did you mean safetensors\?"):
        flare_dist.export(run, tmp_path / "x", format="safetensor")


def test_a_task_and_functions_are_taken_too(tmp_path: Path) -> None:
    rows = flare_dist.train(
        TINY,
        task=CLASSIFICATION,
        data=lambda config, seed: source(),
        model=lambda input_shape, num_classes: nn.Linear(input_shape[0], num_classes),
        output_dir=tmp_path,
    ).metrics
    assert rows[-1]["test_loss"] < rows[0]["test_loss"]


def test_files_dicts_and_configurations_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(TINY))
    configs = [as_dict(make_config(given, {"clients.lr": 0.3})) for given in (path, str(path), TINY)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0]["clients"]["lr"] == 0.3
    config = make_config(TINY, {})
    assert isinstance(config, Config)
    assert make_config(config, {"clients.lr": 0.3}).clients.lr == 0.3
    with pytest.raises(ValueError, match=r"^clients\.lr: "):
        make_config(TINY, {"clients.lr": "fast"})
    with pytest.raises(Exception, match=r"clients\.learning_rate"):
        make_config(TINY, {"clients.learning_rate": 0.3})


@pytest.mark.usefixtures("forked_runs")
def test_sweeps_and_bandwidth_return_rows(run: flare_dist.FinishedRun, tmp_path: Path) -> None:
    rows = flare_dist.sweep(
        TINY | {"data": {"name": "digits"}, "rounds": 1}, grid={"clients.lr": [0.1, 0.2]}, output_dir=tmp_path / "sweep"
    )
    assert [row["status"] for row in rows] == ["finished", "finished"]
    compared = flare_dist.bandwidth([run, *(row["directory"] for row in rows)], ["1Mbps"])
    assert len(compared) == 3
    assert re.search("1.?Mbps", " ".join(compared[0]))


@pytest.mark.parametrize("make", [lambda config, seed: (1, 2), lambda config, seed: source().test])
def test_a_local_function_is_checked_as_a_named_one_is(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.name: python:<lambda> must return a .*Source"):
        flare_dist.train(TINY, data=make, model=net(), output_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "cnn"}, r"model\.name: model= takes no name, got 'cnn'; write model\.name= as a key"),
        ({"task": "regression"}, r"task\.name: task= takes no name, got 'regression'"),
        ({"data": "mnist"}, r"data\.name: data= takes no name, got 'mnist'"),
        ({"model": 5}, r"model\.name: model= takes a Module or a function"),
        ({"on_round": 5}, r"on_round: must be a function of a row, or a list of them, got 5"),
        ({"on_round": [print, None]}, r"on_round: must be a function of a row, .*, got .*None"),
        ({"clients.lrr": 1}, r"clients\.lrr: there is no such option; did you mean clients\.lr\?"),
        ({"clients.lr": "fast"}, r"clients\.lr: expected a number, got fast"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        flare_dist.train(TINY, **{"data": source(), "model": net(), "output_dir": tmp_path} | arguments)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"data": source().train},
            r"^data\.name: data= takes a Source or a function .*, got TensorDataset; give flare_d",
        ),
        (
            {"task": 3},
            r"^task\.name: task= takes a Task or a function that returns one, got int; give flare_dist\.Task",
        ),
        (
            {"task": lambda model, batch: model(batch[0]).sum()},
            r"^task\.name: task= takes a Task, .*, got <lambda>\(model, batch\); for example flare_dist\.Task\(loss=",
        ),
        (
            {"task": torch.nn.CrossEntropyLoss()},
            r"^task\.name: task= takes a Task, .*, got CrossEntropyLoss\(input, target\); for example flare_dist\.Task",
        ),
        ({"model": [net()]}, r"^model\.name: model= takes a Module or a function that returns one, got list; give a "),
        (
            {"model.name": net()},
            r"^model\.name: must be a name or a plain value, got Sequential; write package\.module:",
        ),
        (
            {"config": {"compression": {"sparsifier": net}}},
            r"^compression\.sparsifier: must be a name .*, got net; write",
        ),
    ],
)
def test_objects_in_the_wrong_place_are_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        flare_dist.train(**{"config": TINY, **given})


def test_there_are_two_models(run: flare_dist.FinishedRun) -> None:
    with pytest.raises(ValueError, match=r"^which: unknown choice, got 'bst'; did you mean best\? Choose from final"):
        flare_dist.evaluate(run, "bst")


def test_a_run_goes_on_in_another_directory(run: flare_dist.FinishedRun, tmp_path: Path) -> None:
    further = flare_dist.train(run, rounds=3, output_dir=tmp_path)
    assert [row["round"] for row in further.metrics] == [0, 1, 2, 3]
    assert further.metrics[2]["test_loss"] == run.metrics[2]["test_loss"]


def test_texts_of_options_stay_texts() -> None:
    options = {"tag": "1e3", "version": "0o17", "depth": 3}
    for config in (
        make_config({"model": {"name": "torch.nn:Identity", "options": options}}, {}),
        make_config({"model": {"name": "torch.nn:Identity"}}, {f"model.options.{k}": v for k, v in options.items()}),
    ):
        assert config.model.options == options


def test_values_of_a_dict_are_refused_by_their_key_and_leave_no_path_behind() -> None:
    before = list(sys.path)
    with pytest.raises(ValueError, match=r"^clients\.lr: the dict: expected a number, got fast"):
        make_config({"clients": {"lr": "fast"}}, {})
    make_config({"model": {"name": "torch.nn:Identity"}}, {})
    assert not [path for path in sys.path if path not in before and "tmp" in path]
