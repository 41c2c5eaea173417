"""The hook where others train: on a DDP model, through Accelerate, and across a checkpoint of either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from tests.helpers.hook import STEPS, assert_same_memory, flat, make_accelerator, net, step, steps_of, train
from tests.ranks import run_ranks


def attached(world: World) -> tuple[Tensor, dict[str, Any]]:
    model = net()
    ddp = DistributedDataParallel(model)
    state = flare_dist.attach(ddp, density=0.05)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    for number in range(STEPS):
        step(ddp, optimizer, world.rank, number)
    return flat(model), state.state_dict()


def accelerated(world: World, directory: str, until: int, start: int) -> tuple[Tensor, dict[str, Any]]:
    """Steps `start` to `until` under Accelerate, from the state in `directory` where start > 0, to the state there."""
    return steps_of(make_accelerator(world), world.rank, directory, until, start)


def test_attached_is_registered() -> None:
    for (parameters, state), (expected, memory) in zip(run_ranks(attached, 2), run_ranks(train, 2, {"density": 0.05})):
        assert torch.equal(parameters, expected)
        assert_same_memory(state, memory)


def test_accelerate_trains_and_resumes_with_the_hook(tmp_path: Path) -> None:
    """The straight run equals plain DDP with the hook; so does one that was saved and loaded in the middle."""
    expected = run_ranks(train, 2, {"density": 0.05})
    straight = run_ranks(accelerated, 2, str(tmp_path / "straight"), STEPS, 0)
    run_ranks(accelerated, 2, str(tmp_path / "halves"), 9, 0)
    resumed = run_ranks(accelerated, 2, str(tmp_path / "halves"), STEPS, 9)
    for results in (straight, resumed):
        for (parameters, state), (same, memory) in zip(results, expected):
            assert torch.equal(parameters, same)
            assert_same_memory(state, memory)


def saved(world: World, directory: str) -> dict[str, Any]:
    ddp = DistributedDataParallel(net())
    state = flare_dist.attach(ddp, density=0.05)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for number in range(5):
        step(ddp, optimizer, world.rank, number)
    flare_dist.save_hook_state(state, directory)
    return state.state_dict()


def loaded(world: World, directory: str) -> dict[str, Any]:
    state = flare_dist.attach(DistributedDataParallel(net()), density=0.05)
    flare_dist.load_hook_state(state, directory)
    return state.state_dict()


@pytest.mark.parametrize("size", [2, 3])
def test_another_number_of_ranks_conserves_the_mean_residual(tmp_path: Path, size: int) -> None:
    before = run_ranks(saved, 2, str(tmp_path))
    after = run_ranks(loaded, size, str(tmp_path))
    for name in before[0]["memory"]:
        residuals = [[own["memory"][name]["residual"] for own in ranks] for ranks in (before, after)]
        torch.testing.assert_close(*(torch.stack(vectors).mean(0) for vectors in residuals))
    assert {own["step"] for own in after} == {5}
    if size == 2:
        for own, kept in zip(after, before):
            assert_same_memory(own, kept)


def several(world: World, directory: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What two hooks of one Accelerator remember when they are saved, and after they were loaded again."""
    accelerator = make_accelerator(world)
    pairs = [accelerator.prepare(m := net(), torch.optim.SGD(m.parameters(), lr=0.1)) for _ in range(2)]
    states = [flare_dist.attach(accelerator, model, density=0.05) for model, _ in pairs]
    for number in range(3):
        for place, (model, optimizer) in enumerate(pairs):
            step(model, optimizer, world.rank, 7 * place + number, accelerator)
    accelerator.save_state(directory)
    before = [state.state_dict() for state in states]
    for number in range(2):
        model, optimizer = pairs[0]
        step(model, optimizer, world.rank, number, accelerator)
    accelerator.load_state(directory)
    return before, [state.state_dict() for state in states]


def test_hooks_that_share_a_directory_keep_apart(tmp_path: Path) -> None:
    for before, after in run_ranks(several, 2, str(tmp_path)):
        for own, kept in zip(after, before):
            assert_same_memory(own, kept)


def remembered(world: World, channels_last: bool) -> dict[str, Any]:
    """The memory after one step of a convolution; its bucket lies in memory as the weight does."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    ddp = DistributedDataParallel(model)
    state = flare_dist.attach(ddp, density=0.1)
    inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(world.rank))
    ddp(inputs).square().sum().backward()
    return state.state_dict()


def test_memory_is_addressed_by_name_and_place_whatever_the_memory_format() -> None:
    for rows, channels in zip(run_ranks(remembered, 2, False), run_ranks(remembered, 2, True)):
        residual = channels["memory"]["weight"]["residual"]
        assert residual.shape == (4, 3, 3, 3)
        torch.testing.assert_close(residual, rows["memory"]["weight"]["residual"])


def test_what_is_no_model_of_the_memory_is_refused() -> None:
    state = flare_dist.SparseHookState(nn.Linear(4, 6))
    memory = {"weight": {"residual": torch.zeros(1, 4)}}
    with pytest.raises(ValueError, match=r"saved memory of weight is \(1, 4\), not \(6, 4\)"):
        state.load_state_dict({"step": 1, "memory": memory})
    with pytest.raises(ValueError, match=r"cannot exchange weight, which is torch\.complex64; use density 1"):
        flare_dist.SparseHookState(nn.Linear(4, 6, dtype=torch.complex64))


def test_a_set_of_other_ranks_does_not_outlive_its_checkpoint(tmp_path: Path) -> None:
    """Saved on 2, 3 and 2 ranks in turn into one directory: what is loaded is always the last."""
    for size in (2, 3, 2):
        before = run_ranks(saved, size, str(tmp_path))
        assert len(list(tmp_path.glob("sparse-hook-*"))) == size
    for own, kept in zip(run_ranks(loaded, 2, str(tmp_path)), before):
        assert_same_memory(own, kept)
    for rank in range(2):  # as an older version wrote them, beside those of another number of ranks
        (tmp_path / f"sparse-hook-0000{rank}-of-00002-step-5.pt").rename(
            tmp_path / f"sparse-hook-0000{rank}-of-00002.pt"
        )
    (tmp_path / "sparse-hook-00000-of-00001.pt").write_bytes((tmp_path / "sparse-hook-00000-of-00002.pt").read_bytes())
    for said in run_ranks(refused_files, 2, str(tmp_path)):
        assert "holds sets of 1, 2 ranks: remove all but one" in said


@pytest.mark.parametrize("damage", ["another step", "missing"])
def test_files_that_do_not_belong_together_are_refused_on_every_rank(tmp_path: Path, damage: str) -> None:
    run_ranks(saved, 2, str(tmp_path))
    path = tmp_path / "sparse-hook-00001-of-00002-step-5.pt"
    if damage == "missing":
        path.unlink()
    else:
        torch.save(torch.load(path) | {"step": 4}, path)
    for said in run_ranks(refused_files, 2, str(tmp_path)):
        assert "different steps" in said or "no complete set" in said


def refused_files(world: World, directory: str) -> str:
    with pytest.raises(ValueError, match=r"sparse-hook|sets of") as caught:
        loaded(world, directory)
    return str(caught.value)


def refusals(world: World, directory: str) -> list[str]:
    """What attach says where it cannot work."""
    said = []

    def refused(call: Any) -> None:
        with pytest.raises(ValueError, match=r".") as caught:
            call()
        said.append(str(caught.value))

    bare, taken = net(), DistributedDataParallel(net())
    taken.register_comm_hook(None, fp16_compress_hook)
    accelerator = make_accelerator(world)
    refused(lambda: flare_dist.attach(bare))
    refused(lambda: flare_dist.attach(taken))
    refused(lambda: flare_dist.attach(accelerator))
    refused(lambda: flare_dist.attach(accelerator, bare))
    ddp = DistributedDataParallel(net())
    state = flare_dist.attach(ddp)
    refused(lambda: flare_dist.attach(ddp))
    refused(lambda: flare_dist.load_hook_state(state, directory))
    refused(lambda: flare_dist.attach(bare, world_of_one="warn"))
    refused(lambda: flare_dist.attach(ddp, world_of_one="no"))  # type: ignore[arg-type]
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        traced = DistributedDataParallel(net())
    refused(lambda: flare_dist.attach(traced))
    stepped = net()
    _apply_optimizer_in_backward(torch.optim.SGD, stepped.parameters(), {"lr": 0.1})
    refused(lambda: flare_dist.attach(DistributedDataParallel(stepped)))
    late = [("first.weight", bare.first.weight)]
    delayed = DistributedDataParallel(
        bare, delay_all_reduce_named_params=late, param_to_hook_all_reduce=bare.last.weight
    )
    refused(lambda: flare_dist.attach(delayed))
    refused(lambda: flare_dist.attach(DistributedDataParallel(Tables(sparse=True))))
    refused(lambda: flare_dist.attach(DistributedDataParallel(Tables(sparse=True)), density=1, value_codec="fp16"))
    refused(lambda: flare_dist.attach(DistributedDataParallel(net()), process_group=None))
    prepared = accelerator.prepare(net())
    refused(lambda: flare_dist.attach(accelerator, prepared, scaler=torch.amp.GradScaler("cpu")))
    return said


class Tables(nn.Module):
    """Two tables, whose gradients are sparse tensors or not, and a dense layer."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 6, sparse=sparse)
        self.bags = nn.EmbeddingBag(30, 6, sparse=sparse)
        self.last = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        places = (10 * inputs.abs()).long().clamp(0, 29)
        scores: Tensor = self.last(self.words(places).mean(1) + self.bags(places))
        return scores


def sparse_gradients(world: World, settings: dict[str, Any] | None) -> Tensor:
    """The tables after some steps, plain if there are no settings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ddp = DistributedDataParallel(Tables(sparse=True))
    if settings is not None:
        state = flare_dist.attach(ddp, **settings)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.5)
    for number in range(4):
        step(ddp, optimizer, world.rank, number)
    assert ddp.module.words.weight.grad.is_sparse
    if settings is not None:
        dense = 4 * 2 * 4 * sum(parameter.numel() for parameter in ddp.module.last.parameters())
        rows = (state.wire_bytes - dense) / (8 + 4 * 6)  # an index and 6 values each
        assert rows == int(rows)
        assert 4 * 2 * 2 <= rows <= 4 * 2 * (50 + 30)
        assert (state.step, state.state_dict()["memory"]) == (4, {})
    return flat(ddp)


def both(world: World) -> None:
    assert torch.equal(sparse_gradients(world, {"density": 1}), sparse_gradients(world, None))


def test_sparse_gradients_at_density_one_are_those_of_plain_ddp() -> None:
    run_ranks(both, 2)


class _FabricModule(nn.Module):
    """What Lightning Fabric's setup returns, as far as we look."""

    def __init__(self, forward_module: nn.Module) -> None:
        super().__init__()
        self._forward_module = forward_module

    def forward(self, *inputs: Any) -> Any:
        return self._forward_module(*inputs)


def wrappers(world: World) -> None:
    """Each wrapper takes the same step."""

    def compiled(model: nn.Module) -> Any:
        return torch.compile(model, backend="eager")

    expected: list[Tensor] = []
    for wrap in (
        lambda ddp: ddp,
        _FabricModule,
        compiled,
        lambda ddp: _FabricModule(compiled(ddp)),
        lambda ddp: compiled(_FabricModule(ddp)),
    ):
        model = net()
        wrapped = wrap(DistributedDataParallel(model))
        state = flare_dist.attach(wrapped, density=0.05)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for number in range(2):
            step(wrapped, optimizer, world.rank, number)
        expected.append(flat(model))
        assert state.step == 2
        torch.testing.assert_close(expected[-1], expected[0])


def test_wrappers_of_a_ddp_model_are_taken_as_it_is() -> None:
    run_ranks(wrappers, 2)


def test_one_script_serves_one_process_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    with pytest.raises(ValueError, match=r"not Net; for a script that also runs as one process, give world_of_one="):
        flare_dist.attach(model)
    with pytest.warns(UserWarning, match=r"^attach: one process, so nothing is exchanged") as warned:
        state = flare_dist.attach(model, world_of_one="warn", density=0.05)
    assert [warning.filename for warning in warned] == [__file__]
    step(model, torch.optim.SGD(model.parameters(), lr=0.1), 0, 0)
    assert (state.step, state.wire_bytes, state.take_back(), state.state_dict()["memory"]) == (0, 0, 0, {})
    flare_dist.save_hook_state(state, tmp_path)
    flare_dist.load_hook_state(state, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launcher's, and nothing is wrapped
    with pytest.raises(ValueError, match="attach: takes a DistributedDataParallel model"):
        flare_dist.attach(model, world_of_one="warn")


def test_one_process_under_accelerate_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True)
    model = net()
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"the model is Net, not DistributedDataParallel.*world_of_one='warn'"):
        flare_dist.attach(accelerator, prepared, density=0.05)
    with pytest.warns(UserWarning, match="one process"):
        state = flare_dist.attach(accelerator, prepared, density=0.05, world_of_one="warn")
    step(prepared, optimizer, 0, 0, accelerator)
    accelerator.save_state(tmp_path)
    accelerator.load_state(tmp_path)
    assert state.wire_bytes == 0
    AcceleratorState._reset_state(True)


def test_attach_is_never_silently_dense(tmp_path: Path) -> None:
    said = run_ranks(refusals, 2, str(tmp_path))
    assert said[0] == said[1]
    for message, expected in zip(
        said[0],
        [
            "attach: takes a DistributedDataParallel model, one of fully_shard (FSDP2), an Accelerator",
            "attach: the model has a communication hook already, fp16_compress_hook",
            "attach: give it the model that accelerator.prepare returned",
            "attach: the model is Net, not DistributedDataParallel",
            "attach: the model has a communication hook already, sparse_hook",
            "holds no complete set of sparse-hook files",
            "attach: takes a DistributedDataParallel model, one of fully_shard (FSDP2), an Accelerator",
            "attach: world_of_one must be raise or warn, got no",
            "attach: DDP was wrapped under torch._dynamo.config.optimize_ddp = 'python_reducer'",
            "attach: _apply_optimizer_in_backward takes DDP's only hook",
            "attach: DDP exchanges delay_all_reduce_named_params without its hook",
            "the gradients of bags.weight, words.weight are sparse tensors, which the hook exchanges at density 1 only",
            "the gradients of bags.weight, words.weight are sparse tensors",
            "attach: process_group is that of what the hook is attached to, got NoneType; leave it out",
            "attach: scaler is that of what the hook is attached to, got GradScaler; leave it out",
        ],
        strict=True,
    ):
        assert expected in message


def test_the_top_level_names_are_there_and_nothing_else() -> None:
    for name in flare_dist.__all__:
        assert callable(getattr(flare_dist, name))
    with pytest.raises(AttributeError, match="has no attribute 'sparse_hok'"):
        _ = flare_dist.sparse_hok


def test_kernels_are_tried_on_the_model_s_devices_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr("flare_dist.engines.attach.warm_up", devices.extend)
    for density in (0.5, 1.0):  # everything is sent: there is nothing to select
        with pytest.warns(UserWarning, match="one process"):
            flare_dist.attach(nn.Linear(3, 2), world_of_one="warn", density=density)
    assert devices == [torch.device("cpu")] * 2
