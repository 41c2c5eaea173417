"""mode: gradient: plain data-parallel training where everything is sent, resumable bitwise, counted as it moved."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.message import HEADER_NBYTES
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.data.batches import BatchSource, SharedEpochs
from flare_dist.data.datasets import load
from flare_dist.engines.config import EngineConfig
from flare_dist.models.registry import build
from flare_dist.records import rundir
from flare_dist.records.checkpoint import restore
from flare_dist.rounds.build_run import set_up
from flare_dist.rounds.data_parallel import DataParallel
from flare_dist.rounds.gradient import gradient_round
from flare_dist.server.server import sample_cohort
from tests.helpers.runs import assert_same_run, data_parallel, results, start, tiny
from tests.ranks import run_ranks


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_has_every_example_once_and_ranks_share_each_batch(size: int) -> None:
    epochs = SharedEpochs(25, 4, size, seed=0)
    steps = 25 // (4 * size)
    seen = [torch.cat([epochs.indices(step, rank) for rank in range(size)]) for step in range(2 * steps)]
    for epoch in (seen[:steps], seen[steps:]):
        assert len(torch.cat(epoch).unique()) == steps * 4 * size
    assert not torch.equal(torch.cat(seen[:steps]), torch.cat(seen[steps:]))
    alone = SharedEpochs(25, 4 * size, 1, seed=0)
    assert all(torch.equal(alone.indices(step, 0), batch) for step, batch in enumerate(seen))


def test_too_few_examples_for_a_batch() -> None:
    with pytest.raises(ValueError, match=r"^clients\.batch_size: 2 ranks with 5 examples each need 10, got 9; "):
        SharedEpochs(9, 5, 2, seed=0)


def play(world: World, settings: Config) -> tuple[Tensor, list[dict[str, Any]]]:
    run = set_up(settings, world)
    assert isinstance(run, DataParallel)
    reports = [gradient_round(round_, run) for round_ in range(1, 4)]
    return run.server.parameters.detach(), reports


def by_hand(world: World, settings: Config) -> Tensor:
    """Nine steps of plain DDP on the same batches."""
    data = load(settings.data, settings.seed)
    model = build(
        settings.model.name, settings.model.norm, data.input_shape, data.num_classes, settings.seed, data.task
    )
    source = BatchSource(data.train, data.mean, data.std, "cpu")
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=settings.clients.lr, momentum=0.9)
    epochs = SharedEpochs(len(source), settings.clients.batch_size, world.size, settings.seed)
    for step in range(9):
        ((inputs, labels),) = source.batches(epochs.indices(step, world.rank), 8, None)
        optimizer.zero_grad()
        F.cross_entropy(ddp(inputs), labels).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_everything_sent_is_plain_ddp() -> None:
    settings = data_parallel("x", compression=CompressionConfig(sparsifier="dense"))
    for (parameters, reports), expected in zip(run_ranks(play, 2, settings), run_ranks(by_hand, 2, settings)):
        torch.testing.assert_close(parameters, expected, rtol=1e-5, atol=1e-7)
        assert reports[-1]["train_loss"] < reports[0]["train_loss"]
        assert reports[0]["uplink_bytes"] == reports[0]["dense_bytes"] == 3 * 2 * 4 * len(parameters)


def test_sparse_steps_send_what_they_report_and_leave_all_ranks_alike() -> None:
    settings = data_parallel("x", compression=CompressionConfig(density=0.02, index_codec="int32"))
    (parameters, reports), (other, _) = run_ranks(play, 2, settings)
    assert torch.equal(parameters, other)
    for report in reports:
        assert report["clients"] == 2
        assert 0.02 <= report["kept"] / report["total"] < 0.03
        headers = HEADER_NBYTES * 2 * 3  # of each rank, step and bucket
        assert report["uplink_bytes"] == 8 * report["kept"] + headers
        assert report["uplink_bytes"] < report["wire_bytes"] < report["dense_bytes"]


@pytest.mark.parametrize("feedback", ["ec", "dgc"])
def test_killed_and_continued_equals_straight(tmp_path: Path, feedback: str) -> None:
    compression = CompressionConfig(density=0.02, error_feedback=feedback)
    start(data_parallel(tmp_path / "straight", compression=compression), 2)
    start(data_parallel(tmp_path / "killed", compression=compression), 2, kill_in_round=5)
    start(data_parallel(tmp_path / "killed", compression=compression), 2)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    rows = results(tmp_path / "straight")[1]
    assert all("test_accuracy" in row for row in rows)  # a round ends with an evaluation


def with_adam(directory: Path, **settings: Any) -> Config:
    base = data_parallel(directory)
    gradients = GradientsConfig(preconditioner="adam", **settings)
    clients = dataclasses.replace(base.clients, momentum=0.0, weight_decay=0.1, lr=0.01)
    return dataclasses.replace(base, clients=clients, gradients=gradients, compression=CompressionConfig(density=0.02))


def test_killed_and_continued_with_a_preconditioner_equals_straight(tmp_path: Path) -> None:
    start(with_adam(tmp_path / "straight"), 2)
    start(with_adam(tmp_path / "killed"), 2, kill_in_round=5)
    start(with_adam(tmp_path / "killed"), 2)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    rows = results(tmp_path / "straight")[1]
    start(data_parallel(tmp_path / "ec", compression=CompressionConfig(density=0.02)), 2)
    assert rows[1]["uplink_bytes"] == results(tmp_path / "ec")[1][1]["uplink_bytes"]
    assert rows[-1]["train_loss"] < rows[1]["train_loss"]


def preconditioned(world: World, settings: Config) -> tuple[dict[int, dict[str, Tensor]], dict[str, Any], list[str]]:
    """The checkpoint's memory that is homed here, what the hook makes of it, and the warnings."""
    run = set_up(settings, world)
    assert isinstance(run, DataParallel)
    restored = restore(Path(settings.output_dir) / rundir.CHECKPOINTS, world, run.model.layout.describe())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.take_over(restored.clients, 12)
    return dict(restored.clients), run.hook.state_dict()["memory"], [str(each.message) for each in caught]


@pytest.mark.parametrize("size", [2, 3])
def test_another_number_of_ranks_goes_on_from_the_rescaled_mean_of_second_moments(tmp_path: Path, size: int) -> None:
    settings = with_adam(tmp_path / "run")
    start(settings, 2, kill_in_round=5)
    ranks = run_ranks(preconditioned, size, settings)
    saved = {rank: own for homed, _, _ in ranks for rank, own in homed.items()}
    mean = (saved[0]["second_moment"] + saved[1]["second_moment"]) / 2
    for rank, (_, memory, said) in enumerate(ranks):
        second = torch.cat([own["second_moment"].flatten() for own in memory.values()])
        torch.testing.assert_close(second, saved[rank]["second_moment"] if size == 2 else 1.5 * mean)
        assert {float(own["updates"]) for own in memory.values()} == {12.0}
        assert bool(said) == (size == 3)
        assert all(line.startswith("gradients.preconditioner: 2 ranks saved") for line in said)


@pytest.mark.parametrize("stage", [0, 1])
def test_deepspeed_preconditions_the_same_steps(tmp_path: Path, stage: int) -> None:
    own = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    engine = EngineConfig(name="deepspeed", deepspeed_config=own)
    start(dataclasses.replace(with_adam(tmp_path / "deepspeed"), engine=engine), 2)
    start(with_adam(tmp_path / "accelerate"), 2)
    model, expected = results(tmp_path / "deepspeed")[0], results(tmp_path / "accelerate")[0]
    assert all(torch.allclose(model[name], expected[name], rtol=0, atol=1e-4) for name in expected)


def test_memory_of_gradients_is_none_of_updates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = with_adam(tmp_path / "run")
    start(dataclasses.replace(settings, gradients=GradientsConfig()), 2, kill_in_round=5)
    for _, memory, _ in run_ranks(preconditioned, 2, settings):
        assert not any(vector.any() for own in memory.values() for vector in own.values())


@pytest.mark.parametrize(
    ("clients", "others", "message"),
    [
        (
            {"optimizer": "adamw"},
            {},
            r"^gradients\.preconditioner: the update is Adam's already, got adam with clients\.",
        ),
        (
            {"momentum": 0.9},
            {},
            r"^gradients\.preconditioner: what waits .*, got adam with clients\.momentum=0\.9; use",
        ),
        (
            {"gradient_clipping": 1.0},
            {},
            r"^gradients\.preconditioner: the norm is .* stops learning, got adam with cli",
        ),
        (
            {},
            {"compression": CompressionConfig(error_feedback="dgc")},
            r"^gradients\.preconditioner: dgc's .*; use ec$",
        ),
        (
            {},
            {"gradients": GradientsConfig(hook="fp16", preconditioner="adam")},
            r"^gradients\.preconditioner: these hooks .*, got adam with gradients\.hook=fp16; use none",
        ),
        (
            {},
            {"engine": EngineConfig(name="deepspeed", mixed_precision="fp16")},
            r"^gradients\.preconditioner: updates .* float16, got adam with .*mixed_precision=fp16; use bf16",
        ),
    ],
)
def test_what_does_not_go_with_a_preconditioner_is_refused(
    tmp_path: Path, clients: dict[str, Any], others: dict[str, Any], message: str
) -> None:
    base = with_adam(tmp_path)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(base, clients=dataclasses.replace(base.clients, **clients), **others)


def resumed(world: World, settings: Config) -> tuple[Tensor, Tensor]:
    """This rank's residual in the newest checkpoint of a run, if it has one there, and after taking it over."""
    run = set_up(settings, world)
    assert isinstance(run, DataParallel)
    layout = run.model.layout
    restored = restore(Path(settings.output_dir) / rundir.CHECKPOINTS, world, layout.describe())
    saved = restored.clients.get(world.rank, {}).get("residual", torch.zeros(layout.total)).clone()
    run.take_over(restored.clients, 12)
    memory = run.hook.state_dict()["memory"]
    return saved, torch.cat([memory[entry.name]["residual"].flatten() for entry in layout.entries])


@pytest.mark.parametrize("size", [2, 3])
def test_another_number_of_ranks_goes_on_from_the_mean_residual(tmp_path: Path, size: int) -> None:
    settings = data_parallel(tmp_path / "run")
    start(settings, 2, kill_in_round=5)
    ranks = run_ranks(resumed, size, settings)
    before, after = (torch.stack(vectors) for vectors in zip(*ranks))
    torch.testing.assert_close(after.mean(0), before[:2].mean(0))
    if size == 2:
        assert torch.equal(after, before)
    assert before[0].any()


def test_a_run_goes_on_with_fewer_ranks_and_leaves_no_memory_behind(tmp_path: Path) -> None:
    start(data_parallel(tmp_path / "run"), 3, kill_in_round=5)
    start(data_parallel(tmp_path / "run"), 2)
    rows = results(tmp_path / "run")[1]
    assert [row["clients"] for row in rows[1:]] == [3] * 4 + [2] * 2
    saved = [torch.load(path) for path in sorted((tmp_path / "run" / "checkpoints" / "round-00000006").glob("*.pt"))]
    assert [list(own["clients"]) for own in saved] == [[0], [1]]


def test_pieces_of_a_batch_are_exchanged_once(tmp_path: Path) -> None:
    start(data_parallel(tmp_path / "whole"), 2)
    start(data_parallel(tmp_path / "pieces", engine=EngineConfig(gradient_accumulation_steps=3)), 2)
    (model, rows), (expected, expected_rows) = results(tmp_path / "pieces"), results(tmp_path / "whole")
    assert [row.get("uplink_bytes") for row in rows] == [row.get("uplink_bytes") for row in expected_rows]
    assert all(torch.allclose(model[name], expected[name], rtol=0, atol=1e-5) for name in expected)


def test_what_another_mode_has_not_sent_is_not_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(data_parallel(tmp_path / "gradient"), 2)
    resume = CheckpointConfig(every=2, resume=str(tmp_path / "gradient"))
    start(dataclasses.replace(tiny(tmp_path / "federated"), rounds=7, checkpoint=resume), 2)
    last = max((tmp_path / "federated" / "checkpoints").iterdir())
    assert last.name == "round-00000007"
    clients = [torch.load(path)["clients"] for path in last.glob("*.pt")]
    drawn = sample_cohort(0, 7, 5, 3)
    assert sorted(client for own in clients for client in own) == sorted(drawn)


@pytest.mark.parametrize(("stage", "optimizer"), [(0, "adamw"), (1, "sgd"), (1, "adamw")])
def test_deepspeed_takes_the_same_steps_and_resumes_bitwise(tmp_path: Path, stage: int, optimizer: str) -> None:
    own = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    engine = EngineConfig(name="deepspeed", deepspeed_config=own)
    momentum = 0.9 if optimizer == "sgd" else 0.0

    def settings(name: str, **changes: Any) -> Config:
        base = data_parallel(tmp_path / name, **changes)
        clients = dataclasses.replace(base.clients, optimizer=optimizer, momentum=momentum, lr=0.01)
        return dataclasses.replace(base, clients=clients)

    start(settings("straight", engine=engine), 2)
    start(settings("killed", engine=engine), 2, kill_in_round=5)
    start(settings("killed", engine=engine), 2)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    start(settings("accelerate"), 2)
    model, expected = results(tmp_path / "straight")[0], results(tmp_path / "accelerate")[0]
    assert all(torch.allclose(model[name], expected[name], rtol=0, atol=1e-5) for name in expected)


@pytest.mark.parametrize(
    ("compression", "message"),
    [
        ({"scope": "global"}, r"^compression\.scope: global would let"),
        ({"error_feedback": "ef21"}, r"^compression\.error_feedback: ef21 needs a server"),
        ({"sparsifier": "threshold"}, r"^compression\.sparsifier: the size of what threshold sends"),
    ],
)
def test_what_a_hook_cannot_do_is_refused_at_once(compression: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_parallel("x", compression=CompressionConfig(**compression))
