"""The hook between replicas that FSDP2 shards: native HSDP at density 1, equal replicas below, memory that moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_common
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import flare_dist
from flare_dist.comm.collectives import gather_objects
from flare_dist.comm.world import World
from flare_dist.engines import fsdp_groups
from flare_dist.hook import call_order
from flare_dist.hook.backwards import ABSENT, elsewhere
from flare_dist.hook.call_order import CallOrder, arrived, begin_together
from flare_dist.hook.state import SparseHookState
from tests.helpers.hook import batch, flat, net
from tests.helpers.sharded import backward, equal, mesh_of, sharded, train, whole
from tests.ranks import run_ranks

STEPS = 6
Told = dict[str, Any]


class Twice(nn.Module):
    """A model whose middle layer is used twice, and whose last one shares its weight with the first."""

    blocks = ("middle",)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12, bias=False)
        self.middle = nn.Linear(12, 12)
        self.last = nn.Linear(12, 12, bias=False)
        self.last.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.middle(torch.tanh(self.first(inputs))))
        return self.last(torch.tanh(self.middle(hidden)))


class Unused(nn.Module):
    """A model with a parameter that its output does not depend on."""

    blocks = ("",)

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(12, 4)
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


def twice() -> Twice:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Twice()


def in_turn(model: nn.Module, rank: int, silence: Callable[[Any, bool], None]) -> None:
    """Two backwards a step, the first of which is not exchanged."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        silence(model, step % 2 == 1)
        backward(model, step, rank)
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()


LIKE_NATIVE: dict[str, Callable[[Any, World], Tensor]] = {}


def like_native(run: Callable[[Any, World], Tensor]) -> Callable[[Any, World], Tensor]:
    LIKE_NATIVE[run.__name__] = run
    return run


@like_native
def plain(make: Any, world: World) -> Tensor:
    model = make(net())
    train(model, range(STEPS), world.rank)
    return whole(model)


@like_native
def accumulated(make: Any, world: World) -> Tensor:
    model = make(net())
    in_turn(model, world.rank, lambda model, last: model.set_requires_gradient_sync(last))
    return whole(model)


@like_native
def accumulated_by_shard(make: Any, world: World) -> Tensor:
    model = make(net())
    in_turn(model, world.rank, lambda model, last: model.set_requires_all_reduce(last))
    return whole(model)


@like_native
def used_twice_and_tied(make: Any, world: World) -> Tensor:
    model = make(twice())
    train(model, range(STEPS), world.rank)
    return whole(model)


@like_native
def partly_frozen(make: Any, world: World) -> Tensor:
    inner = net()
    inner.middle.weight.requires_grad_(False)
    inner.first.requires_grad_(False)
    model = make(inner)
    train(model, range(STEPS), world.rank)
    return whole(model)


@like_native
def low_precision(make: Any, world: World) -> Tensor:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    model = make(net(), mp_policy=policy)
    train(model, range(STEPS), world.rank)
    return whole(model)


@like_native
def clipped(make: Any, world: World) -> Tensor:
    """With the norms of the last step, which are all far above what is let through."""
    model = make(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    norms: list[Any] = []
    for step in range(STEPS):
        backward(model, step, world.rank)
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.1))
        optimizer.step()
        optimizer.zero_grad()
    whole_norms = torch.stack([norm.full_tensor() for norm in norms])
    assert (whole_norms > 0.1).all()
    return torch.cat([whole(model), whole_norms])


@like_native
def recomputed(make: Any, world: World) -> Tensor:
    model = make(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        inputs, labels = batch(world.rank, step)
        F.cross_entropy(checkpoint(model, inputs, use_reentrant=False), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole(model)


def laws(world: World, shards: int, names: list[str]) -> Told:
    """Whether weights after `STEPS` steps are those of native HSDP, and those of all ranks at a lower density."""
    mesh = mesh_of(world, shards)
    told: Told = {}

    def native(model: nn.Module, **options: Any) -> nn.Module:
        return sharded(mesh, model, **options)

    def ours(model: nn.Module, **options: Any) -> nn.Module:
        made = sharded(mesh["shard"], model, **options)
        flare_dist.attach(made, mesh=mesh, density=1)
        return made

    def taken_over(model: nn.Module, **options: Any) -> nn.Module:
        made = sharded(mesh, model, **options)
        flare_dist.attach(made, mesh=mesh, density=1)
        return made

    for name in names:
        run = LIKE_NATIVE[name]
        told[name] = equal([run(make, world) for make in (native, ours, taken_over)])
    return told


@pytest.mark.parametrize(
    ("shards", "names"), [(1, ["plain"]), (2, sorted(LIKE_NATIVE)), (3, ["plain", "accumulated_by_shard"])]
)
def test_density_1_on_two_replicas_is_native_hsdp_bitwise(shards: int, names: list[str]) -> None:
    for told in run_ranks(laws, 2 * shards, shards, names):
        assert told == dict.fromkeys(names, True)


RULES: list[dict[str, Any]] = [
    {},
    {"error_feedback": "dgc"},
    {"preconditioner": "adam"},
    {"warmup": [1.0, 0.2], "warmup_rounds": 4},
]


def like_ddp(world: World) -> list[list[Tensor]]:
    """Weights and residuals of ten sparse steps, of DistributedDataParallel and of replicas of one shard."""
    found = []
    mesh = mesh_of(world, 1)
    for rule in RULES:
        plain = DistributedDataParallel(net())
        by_bucket = flare_dist.attach(plain, density=0.05, **rule)
        made, by_group = attached(mesh, **rule)
        for model in (plain, made):
            train(model, range(10), world.rank, lr=0.01)
        memories = [state.state_dict()["memory"] for state in (by_bucket, by_group)]
        residuals = [{name: own["residual"] for name, own in memory.items()} for memory in memories]
        ours = [flat(plain), *residuals[0].values()]
        theirs = [whole(made), *(residuals[1][name] for name in residuals[0])]
        found.append([one.flatten() - other.flatten() for one, other in zip(ours, theirs)])
    return found


def test_sparse_steps_are_those_of_distributed_data_parallel() -> None:
    """Bitwise: each tensor is selected from by itself, in a bucket as in a group; those steps have an oracle."""
    for found in run_ranks(like_ddp, 2):
        for rule, differences in zip(RULES, found):
            assert not any(difference.any() for difference in differences), rule


def memories_equal(one: SparseHookState, other: SparseHookState) -> bool:
    pairs = zip(flare_dist.hook_tensors(one).values(), flare_dist.hook_tensors(other).values())
    return all(_same(mine, theirs) for mine, theirs in pairs)


def _same(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, str) else equal([_whole(one), _whole(other)])


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def attached(mesh: Any, model: nn.Module | None = None, **settings: Any) -> tuple[Any, SparseHookState]:
    made = sharded(mesh["shard"], model)
    return made, flare_dist.attach(made, mesh=mesh, **({"density": 0.05} | settings))


def send_little(world: World, mesh: Any, told: Told) -> None:
    """150 steps of a wider net at density 0.01; each rank begins with weights of its own."""
    torch.manual_seed(world.rank)
    wide = nn.Sequential(nn.Linear(12, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 4))
    model, state = attached(mesh, wide, density=0.01)
    train(model, range(150), world.rank)
    told["replicas are equal"] = equal(gather_objects(whole(model), None))
    own: list[Any] = [parameter.to_local() for parameter in model.parameters()]
    own_numel = sum(part.numel() for part in own)
    told["part of dense bytes"] = state.traffic.uplink_bytes / (150 * 4 * own_numel)
    told["part of dense bytes on the wire"] = state.traffic.wire_bytes / (2 * 150 * 4 * own_numel)  # of a ring of two
    told["collectives a step"] = state.traffic.collectives / 150
    remembered = [vectors["residual"].numel() for vectors in state.state_dict()["memory"].values()]
    told["remembered of own"] = sum(remembered) / own_numel


def resume(world: World, mesh: Any, told: Told, directory: Path) -> None:
    """Three steps, the memory loaded into a new model, and three more."""
    for way in ("files", "tensors"):
        place = directory / way
        straight, state = attached(mesh, error_feedback="dgc")
        train(straight, range(3), world.rank)
        told["memory"] = {name: _whole(tensor) for name, tensor in flare_dist.hook_tensors(state).items()}
        weights = [parameter.detach().clone() for parameter in straight.parameters()]
        if way == "files":
            flare_dist.save_hook_state(state, place)
        else:
            dcp.save({"hook": flare_dist.hook_tensors(state)}, checkpoint_id=place)
        gather_objects(None, None)
        train(straight, range(3, STEPS), world.rank)
        model, again = attached(mesh, error_feedback="dgc")
        for parameter, weight in zip(model.parameters(), weights):
            parameter.detach().copy_(weight)
        load = flare_dist.load_hook_state if way == "files" else flare_dist.load_hook_tensors
        load(again, place)
        train(model, range(3, STEPS), world.rank)
        told[f"resumed from {way}"] = equal([whole(straight), whole(model)]) and memories_equal(state, again)
        told[f"steps from {way}"] = again.step
        _, other = attached(mesh)
        told[f"another rule from {way}"] = said(partial(load, other, place))


def options(world: World, mesh: Any, told: Told) -> None:
    model, state = attached(mesh)
    train(model, range(2), world.rank)
    before = flare_dist.hook_tensors(state)
    backward(model, 2, world.rank)
    told["taken back"] = state.take_back()
    model.zero_grad()
    after = flare_dist.hook_tensors(state)
    told["as before"] = all(_same(before[name], after[name]) for name in before)
    model, state = attached(mesh, preconditioner="adam")
    train(model, range(3), world.rank, lr=0.01)
    told["preconditioned replicas are equal"] = equal(gather_objects(whole(model), None))
    told["second moments"] = [name for name in flare_dist.hook_tensors(state) if name.startswith("second_moment")]
    backward(model, 3, world.rank)
    told["a second backward"] = said(lambda: backward(model, 4, world.rank), RuntimeError)
    model = sharded(mesh["shard"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    flare_dist.attach(model, mesh=mesh, density=0.01, optimizer=optimizer, adapt=True)
    told["adapted"] = optimizer.param_groups[0]["betas"][0]


def said(action: Callable[[], Any], error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        action()
    return str(caught.value)


def break_off(world: World, mesh: Any, told: Told) -> None:
    """A backward that ends in the middle leaves the memory as it was; FSDP2 itself would train wrong behind it."""
    model, state = attached(mesh)
    train(model, range(2), world.rank)
    before = flare_dist.hook_tensors(state)
    model.first.register_forward_hook(_fail_in_backward)
    told["broken off"] = said(lambda: backward(model, 2, world.rank), ZeroDivisionError)
    told["forward behind it"] = said(lambda: backward(model, 3, world.rank), RuntimeError)
    state.take_back()
    after = flare_dist.hook_tensors(state)
    told["memory behind it"] = all(_same(before[name], after[name]) for name in before)


def _fail_in_backward(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.register_hook(lambda gradient: 1 // 0)


def by_rows(mesh: Any) -> Tensor:
    """Weights of ten steps in which all ranks of a replica see the same."""
    model, _ = attached(mesh, scope="row")
    train(model, range(10), mesh.get_local_rank("replicate"))
    return whole(model)


def story(world: World, directory: Path) -> Told:
    mesh = mesh_of(world, 2)
    told: Told = {"by rows": by_rows(mesh)}
    send_little(world, mesh, told)
    resume(world, mesh, told, directory)
    options(world, mesh, told)
    break_off(world, mesh, told)
    return told


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Told]]:
    """A directory in which two replicas of two shards have saved a memory, and what they tell."""
    directory = tmp_path_factory.mktemp("sharded")
    return directory, run_ranks(story, 4, directory)


def test_replicas_stay_equal_while_less_than_a_45th_of_dense_bytes_is_sent(saved: tuple[Path, list[Told]]) -> None:
    for told in saved[1]:
        assert told["replicas are equal"]
        assert told["part of dense bytes"] < 1 / 45
        assert told["part of dense bytes on the wire"] < 1 / 45
        assert told["collectives a step"] == 2 * 3  # three groups: where a replica is, and what it sends
        assert told["remembered of own"] == 1


def test_training_resumes_bitwise_from_files_and_from_dtensors(saved: tuple[Path, list[Told]]) -> None:
    for told in saved[1]:
        assert told["resumed from files"]
        assert told["resumed from tensors"]
        assert told["steps from files"] == told["steps from tensors"] == STEPS
        for way in ("files", "tensors"):
            assert "the memory was saved under dgc, and here the rule is ec" in told[f"another rule from {way}"]


def test_options_hold_for_shards(saved: tuple[Path, list[Told]]) -> None:
    for told in saved[1]:
        assert told["taken back"] == 1
        assert told["as before"]
        assert told["preconditioned replicas are equal"]
        assert "second_moment.middle.weight" in told["second moments"]
        assert (
            "run all but the last backward of a step under set_requires_gradient_sync(False)"
            in (told["a second backward"])
        )
        assert told["adapted"] == 0


def test_a_backward_that_was_broken_off_leaves_the_memory_as_it_was(saved: tuple[Path, list[Told]]) -> None:
    for told in saved[1]:
        assert told["broken off"] == "integer division or modulo by zero"
        assert "attach: a backward was broken off, and FSDP2 would go on with wrong" in told["forward behind it"]
        assert told["memory behind it"]


def load_elsewhere(world: World, shards: int, directory: Path) -> tuple[list[dict[str, Tensor]], Tensor]:
    mesh = mesh_of(world, shards)
    loaded = []
    for load, place in ((flare_dist.load_hook_state, "files"), (flare_dist.load_hook_tensors, "tensors")):
        _, state = attached(mesh, error_feedback="dgc")
        load(state, directory / place)
        loaded.append({name: _whole(tensor) for name, tensor in flare_dist.hook_tensors(state).items()})
    return loaded, by_rows(mesh)


@pytest.mark.parametrize(("ranks", "shards"), [(2, 1), (6, 3), (6, 2)])
def test_memory_moves_to_other_numbers_of_shards_exactly_and_of_replicas_as_its_mean(
    saved: tuple[Path, list[Told]], ranks: int, shards: int
) -> None:
    kept = saved[1][0]["memory"]
    memories, weights = run_ranks(load_elsewhere, ranks, shards, saved[0])[0]
    if (ranks, shards) == (2, 1):
        assert torch.equal(weights, saved[1][0]["by rows"])  # a mean of two equal gradients is exact
    elif (ranks, shards) == (6, 3):  # of which one has no row of the last layer but padding
        torch.testing.assert_close(weights, saved[1][0]["by rows"], rtol=1e-5, atol=1e-6)
    for loaded in memories:
        assert loaded.pop("step") == 3
        assert loaded.pop("rule") == "dgc"
        for name, vectors in loaded.items():
            assert vectors.any()
            if len(vectors) == len(kept[name]):
                assert torch.equal(vectors, kept[name])
            else:
                assert torch.equal(vectors, kept[name].mean(0).expand_as(vectors))


def on_two_meshes(mesh: Any) -> nn.Module:
    """The net with its biases on another mesh than its weights, as experts may be."""
    other = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))["shard"]
    infos = [_fsdp_common.FSDPMeshInfo(each, shard_mesh_dim=0) for each in (other, mesh)]

    def place(parameter: nn.Parameter) -> Any:
        return _fsdp_common.ShardPlacementResult(Shard(0), infos[parameter.dim() - 1])

    model = net()
    fully_shard(model, mesh=mesh, shard_placement_fn=place)
    return model


def refusals(world: World) -> Told:
    """What is refused on two replicas of one shard, and what is said."""
    mesh = mesh_of(world, 1)
    told: Told = {}

    def refuse(name: str, model: Any = None, given: Any = mesh, **settings: Any) -> None:
        model = sharded(mesh["shard"]) if model is None else model
        told[name] = said(lambda: flare_dist.attach(model, mesh=given, **settings))

    refuse("no mesh", given=None)
    refuse("clip_norm", clip_norm=1.0)
    refuse("other names", given=init_device_mesh("cpu", (2, 1), mesh_dim_names=("far", "near")))
    refuse("three dimensions", given=init_device_mesh("cpu", (2, 1, 1), mesh_dim_names=("replicate", "shard", "tp")))
    one_replica = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicate", "shard"))
    refuse("one replica", sharded(one_replica["shard"]), given=one_replica)
    refuse("not sharded", nn.Linear(2, 2))
    alone_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("shard", "replicate"))
    alone_model = sharded(alone_mesh["shard"])
    with pytest.warns(UserWarning, match="one replica, so nothing is exchanged"):
        alone = flare_dist.attach(alone_model, mesh=alone_mesh, world_of_one="warn")
    told["tensors of one replica"] = sorted(flare_dist.hook_tensors(alone))[:2]
    frozen = net().requires_grad_(False)
    refuse("all frozen", sharded(mesh["shard"], frozen))
    without_root = net()
    fully_shard(without_root.first, mesh=mesh["shard"])
    refuse("without the root", without_root)
    divided = sharded(mesh["shard"])
    divided.first.set_gradient_divide_factor(3.0)
    refuse("another factor", divided)
    both_ways = init_device_mesh("cpu", (2, 1, 1), mesh_dim_names=("replicate", "shard", "tp"))
    split = net()
    parallelize_module(split.first, both_ways["tp"], ColwiseParallel())
    refuse("tensor parallelism", sharded(both_ways["shard"], split), given=both_ways["replicate", "shard"])
    if hasattr(_fsdp_common, "ShardPlacementResult"):  # not in torch 2.11
        refuse("several groups in a module", on_two_meshes(mesh["shard"]))
    half = MixedPrecisionPolicy(param_dtype=torch.float16)
    refuse("float16", sharded(mesh["shard"], net(), mp_policy=half))
    with patch.object(fsdp_groups, "_READ", ("mesh_info", "gone")):
        refuse("a torch without what is read")
    with patch.object(FSDPParamGroup, "_is_hsdp", True):
        refuse("a torch that still goes over replicas", sharded(mesh))
    of_another_kind = sharded(mesh)
    info: Any = fsdp_groups.groups_of(of_another_kind)[0][0]._private.mesh_info
    info.__class__ = type("NewMeshInfo", (type(info),), {})
    refuse("a torch with another kind of mesh", of_another_kind)
    twice_attached, _ = attached(mesh)
    refuse("attached twice", twice_attached)
    other = net()
    other.middle.bias.requires_grad_(world.rank == 0)
    refuse("another model", sharded(mesh["shard"], other))
    refuse("sharded over all ranks", sharded(init_device_mesh("cpu", (2,))))
    for place in ("first", "middle.bias"):  # a whole group, and a part of one
        frozen_part = net()
        frozen_part.first.requires_grad_(False)
        frozen_part.middle.bias.requires_grad_(False)
        model, _ = attached(mesh, frozen_part)
        backward(model, 0, world.rank)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name.startswith(place))
        told[f"{place} is trained later"] = said(partial(backward, model, 1, world.rank), RuntimeError)
    for density in (0.05, 1):
        model, _ = attached(mesh, density=density)
        inputs, labels = batch(world.rank, 0)
        loss = F.cross_entropy(model(inputs, skip=world.rank == 1), labels)
        told[f"left out at {density}"] = said(loss.backward, RuntimeError)
    model, _ = attached(mesh)
    told["attached late"] = said(lambda: attached(mesh) if world.rank else backward(model, 0, 0), RuntimeError)
    model, _ = attached(mesh, Unused())
    told["a parameter without a gradient"] = said(lambda: backward(model, 0, world.rank), RuntimeError)
    model, _ = attached(mesh, Unused())
    if hasattr(model, "set_reduce_scatter_unused_params"):  # not in torch 2.11
        model.set_reduce_scatter_unused_params(True)
        train(model, range(2), world.rank)  # which goes
    return told


REFUSED = {
    "all frozen": "attach: the model has no parameters with requires_grad",
    "no mesh": "attach.mesh: the model is sharded, got no mesh; give the DeviceMesh of its replicas",
    "clip_norm": "gradients.clip_norm: FSDP2 hands over one group of parameters at a time",
    "other names": "attach.mesh: needs one dimension named replicate or dp_replicate, got far, near",
    "three dimensions": "attach.mesh: needs two dimensions, over replicas and over shards, got replicate, shard, tp",
    "one replica": "attach: one replica has nobody to exchange with",
    "not sharded": "attach: a mesh is for models of fully_shard (FSDP2), got Linear; FSDP1 hands",
    "without the root": "is in no group of fully_shard; shard the root module as well",
    "another factor": "divide behind the hook",
    "tensor parallelism": "first.weight is sharded by tensor parallelism as well; attach to models of FSDP2 alone",
    "float16": "FSDP2 divides float16 gradients behind the hook; use reduce_dtype=torch.float32",
    "attached twice": "the model has an all-reduce hook already",
    "a torch without what is read": "FSDP2's groups of parameters have no gone; this is another PyTorch than",
    "a torch that still goes over replicas": "attach: PyTorch still takes the mean over replicas itself; this is anoth",
    "a torch with another kind of mesh": "attach: cannot take replicas out of NewMeshInfo; this is another PyTorch",
    "another model": "has another middle.bias; build the same model on all of them",
    "sharded over all ranks": "attach.mesh: the model is sharded over the ranks [0, 1], and a replica of the mesh is [",
    "first is trained later": "exchanges what is trained when it is made, got requires_grad=True of first.weight since",
    "middle.bias is trained later": "got requires_grad=True of middle.bias since; set it before attach()",
    "left out at 0.05": "got another module on one of them",
    "left out at 1": "got another module on one of them",
    "attached late": "attach: all replicas must call it together, got one that calls it while others train",
    "a parameter without a gradient": "got no gradient in this backward, and FSDP2 does not tell which",
}


def test_what_does_not_go_is_refused_on_all_replicas() -> None:
    for told in run_ranks(refusals, 2):
        assert told["tensors of one replica"] == ["residual.first.bias", "residual.first.weight"]
        for name, words in REFUSED.items():
            assert words in told[name], name
        several = "attach: a module has parameters on several meshes"
        assert several in told.get("several groups in a module", several)


def test_a_replica_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: Any = torch.futures.Future()
    gone.set_exception(RuntimeError("Connection closed by peer"))
    words = "another replica did not come .* give each as many batches, and let all of them begin together .*closed"
    with pytest.raises(RuntimeError, match=words):
        arrived(gone, ABSENT)
    monkeypatch.setattr(call_order, "start_gather", lambda place, group: (place, gone))
    with pytest.raises(RuntimeError, match=words):
        CallOrder(None, ABSENT, elsewhere).compare(torch.zeros(1))
    with pytest.raises(RuntimeError, match="outer: another replica does not begin; every replica"):
        begin_together(None, torch.device("cpu"), "outer", elsewhere)
