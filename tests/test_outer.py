"""Outer steps equal an oracle of all replicas in one process, resume bitwise, and refuse what does not fit."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from flare_dist.compression.sparsifiers import largest
from flare_dist.compression.value_codecs import VALUE_CODECS, Groups
from flare_dist.hook.outer_settings import PRESETS, OuterSettings
from tests.ranks import run_ranks

STEPS = 24
DILOCO: dict[str, Any] = {"lr": 0.7, "momentum": 0.9, "nesterov": True}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3))


def batch(step: int, replica: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1000 * step + replica)
    return torch.randn(8, 10, generator=draws), torch.randint(0, 3, (8,), generator=draws)


def inner_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, replica: int) -> None:
    inputs, labels = batch(step, replica)
    optimizer.zero_grad()
    F.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


LR = 1e-2


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LR)


def train(world: World, settings: dict[str, Any], steps: int = STEPS) -> tuple[list[Tensor], list[Tensor], int]:
    """The weights of this replica, the global ones, and the bytes on the wire."""
    model = net(seed=world.rank)  # those of replica 0 count
    outer = flare_dist.outer(model, **settings)
    optimizer = adamw(model)
    for step in range(1, steps + 1):
        inner_step(model, optimizer, step, world.rank)
        outer.step(lr=LR)
    own = [parameter.detach().clone() for parameter in model.parameters()]
    with outer.averaged():
        shared = [parameter.detach().clone() for parameter in model.parameters()]
    assert all(torch.equal(mine, parameter) for mine, parameter in zip(own, model.parameters()))
    return own, shared, outer.wire_bytes


def finish_at_ten(world: World) -> tuple[list[Tensor], list[Tensor]]:
    model = net()
    outer = flare_dist.outer(model, every=6, fragments=2, delay=4, mix=0.5, outer_options={"lr": 1.0})
    optimizer = adamw(model)
    for step in range(1, 11):  # a fragment is on the way
        inner_step(model, optimizer, step, world.rank)
        outer.step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    outer.finish()
    return before, [parameter.detach() for parameter in model.parameters()]


def test_replicas_end_with_the_same_weights() -> None:
    """Of the fragment that is not on the way, with an outer rate of 1, the mean of theirs."""
    (one, first), (other, second) = run_ranks(finish_at_ten, 2)
    assert not any(torch.equal(a, b) for a, b in zip(one, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    torch.testing.assert_close(first[2], (one[2] + other[2]) / 2, rtol=1e-5, atol=1e-6)


class Oracle:
    """All replicas in one process."""

    def __init__(
        self,
        replicas: int,
        every: int,
        parts: list[list[int]],
        delay: int,
        mix: float,
        density: float,
        pull: float,
        codec: str,
    ) -> None:
        self.models = [net() for _ in range(replicas)]
        self.inner = [adamw(model) for model in self.models]
        self.start = list(copy.deepcopy(self.models[0]).parameters())
        self.optimizers = [torch.optim.SGD([self.start[n] for n in part], **DILOCO) for part in parts]
        self.residuals = [[torch.zeros_like(p) for p in self.start] for _ in self.models]
        self.every, self.parts, self.delay, self.mix, self.density = every, parts, delay, mix, density
        self.distance = LR * pull
        self.codec = VALUE_CODECS[codec]
        self.decay = DECAY if codec == "2bit" else 1.0
        self.sent: dict[int, tuple[int, list[Tensor]]] = {}  # by the step in which it is due

    @torch.no_grad()
    def send(self, place: int, number: int) -> Tensor:
        """The mean of what the replicas send of one tensor, in their order."""
        moved = [self.start[number] - list(model.parameters())[number] for model in self.models]
        if self.density == 1:
            return sum((one / len(moved) for one in moved[1:]), moved[0] / len(moved))
        mean = torch.zeros(moved[0].numel())
        for residuals, one in zip(self.residuals, moved):
            total = (self.decay * residuals[number] + one).flatten()
            places = largest(total, max(1, round(self.density * total.numel())))
            groups = Groups(torch.zeros_like(places), 1)  # a tensor is less than a block
            values = self.codec.decode(self.codec.encode(total[places], groups, None), groups)
            mean.index_add_(0, places, values / len(moved))
            residuals[number] = total.index_add(0, places, -values).view_as(one)
        return mean.view_as(moved[0])

    @torch.no_grad()
    def pull(self) -> None:
        """Of tensors that are not on the way: p - distance * sign(p - start - A) where |A| is above its median."""
        away = {number for place, _ in self.sent.values() for number in self.parts[place]}
        for model, residuals in zip(self.models, self.residuals):
            for number, local in enumerate(model.parameters()):
                towards = -residuals[number]  # what is fed back is start - p
                nearest_rank = towards.abs().flatten().sort().values[round((local.numel() - 1) / 2)]
                mask = towards.abs() > nearest_rank
                if number not in away:
                    local.sub_(self.distance * mask * (local - self.start[number] - towards).sign())

    @torch.no_grad()
    def outer_step(self, step: int) -> None:
        interval = self.every // len(self.parts)
        if step % interval == 0:
            place = (step // interval - 1) % len(self.parts)
            self.sent[step + self.delay] = place, [self.send(place, number) for number in self.parts[place]]
        if step in self.sent:
            place, means = self.sent.pop(step)
            for number, mean in zip(self.parts[place], means):
                self.start[number].grad = mean
            self.optimizers[place].step()
            for model, number in itertools.product(self.models, self.parts[place]):
                local = list(model.parameters())[number]
                local.copy_(self.start[number].lerp(local, self.mix) if self.mix else self.start[number])

    def train(self) -> Iterator[list[Tensor]]:
        for step in range(1, STEPS + 1):
            for replica, (model, optimizer) in enumerate(zip(self.models, self.inner)):
                inner_step(model, optimizer, step, replica)
            self.pull()
            self.outer_step(step)
        return iter([[p.detach() for p in model.parameters()] for model in self.models])


DECAY = 0.95  # of what waits, in SparseLoCo
CASES = [  # fragments, delay, mix, density, pull, codec of values
    (1, 0, 0.0, 1.0, 0.0, "fp32"),
    (2, 0, 0.0, 1.0, 0.0, "fp32"),
    (2, 3, 0.5, 1.0, 0.0, "fp32"),
    (1, 5, 0.25, 0.1, 0.0, "fp32"),
    (2, 2, 0.0, 0.1, 0.0, "fp32"),
    (1, 0, 0.0, 0.1, 0.0, "fp32"),
    (1, 0, 0.0, 0.1, 0.25, "fp32"),
    (2, 2, 0.5, 0.1, 0.25, "fp32"),
    (2, 5, 0.5, 1.0, 0.0, "fp32"),  # two fragments are on the way
    (1, 0, 0.0, 0.1, 0.0, "2bit"),
]


OF_CODEC: dict[str, Any] = {"2bit": {"residual_decay": DECAY, "scope": "block", "block": 4096}}


def train_all(world: World) -> list[tuple[list[Tensor], list[Tensor], int]]:
    names = ("fragments", "delay", "mix", "density", "pull", "value_codec")
    settings: list[dict[str, Any]] = [{"every": 6, "outer_options": DILOCO} | dict(zip(names, case)) for case in CASES]
    return [train(world, each | OF_CODEC.get(each["value_codec"], {})) for each in settings]


@functools.cache
def trained(replicas: int) -> list[list[tuple[list[Tensor], list[Tensor], int]]]:
    """What each replica has of each case."""
    return run_ranks(train_all, replicas)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_are_those_of_the_oracle(replicas: int, case: int) -> None:
    """Bitwise, but for the dense sum of four replicas, whose order gloo chooses."""
    fragments, delay, mix, density, pull, codec = CASES[case]
    parts = [[0], [1, 2, 3]] if fragments == 2 else [[0, 1, 2, 3]]
    found = [own[case] for own in trained(replicas)]
    expected = list(Oracle(replicas, 6, parts, delay, mix, density, pull, codec).train())
    for (own, _, wire_bytes), one in zip(found, expected):
        for mine, theirs in zip(own, one):
            if density == 1 and replicas == 4:
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(mine, theirs)
        assert wire_bytes > 0
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1]))  # the global weights
    if pull:
        plain = trained(replicas)[0][CASES.index((1, 0, 0.0, 0.1, 0.0, "fp32"))]
        assert not any(torch.equal(a, b) for a, b in zip(found[0][0], plain[0]))


def take_local_steps(world: World) -> list[Tensor]:
    model = net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = flare_dist.outer(model, preset="local_sgd", every=1)
    for step in range(1, 9):
        inputs, labels = batch(step, world.rank)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs.double()), labels).backward()
        optimizer.step()
        outer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_averages_after_each_step_are_data_parallel_sgd() -> None:
    found = run_ranks(take_local_steps, 2)
    model = net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 9):
        optimizer.zero_grad()
        for replica in range(2):
            inputs, labels = batch(step, replica)
            (F.cross_entropy(model(inputs.double()), labels) / 2).backward()
        optimizer.step()
    for own, parameter in zip(found[0], model.parameters()):  # what travels is float32
        torch.testing.assert_close(own, parameter.detach(), rtol=1e-5, atol=1e-6)


RESUMED: dict[str, Any] = {"every": 6, "fragments": 2, "delay": 4, "mix": 0.5, "density": 0.1, "residual_decay": 0.9}
RESUMED["pull"] = 0.25


def stop_and_go_on(world: World, directory: Path, at: int) -> tuple[list[Tensor], list[Tensor], int]:
    """Train to step `at`, and on from its files in other objects."""
    first = net()
    outer = flare_dist.outer(first, **RESUMED)
    optimizer = adamw(first)
    for step in range(1, at + 1):
        inner_step(first, optimizer, step, world.rank)
        outer.step(lr=LR)
    flare_dist.save_hook_state(outer, directory)
    model = net(seed=7)  # nothing of it counts
    outer = flare_dist.outer(model, **RESUMED)
    flare_dist.load_hook_state(outer, directory)
    saved, optimizer = optimizer.state_dict(), adamw(model)
    optimizer.load_state_dict(saved)
    for step in range(at + 1, STEPS + 1):
        inner_step(model, optimizer, step, world.rank)
        outer.step(lr=LR)
    own = [parameter.detach().clone() for parameter in model.parameters()]
    with outer.averaged():
        return own, [parameter.detach().clone() for parameter in model.parameters()], outer.finished_steps


STOPS = [2, 7, 14, 15, 18]


def train_straight_and_stopped(world: World, directory: Path) -> list[Any]:
    return [train(world, RESUMED), *(stop_and_go_on(world, directory / str(at), at) for at in STOPS)]


def test_a_run_is_resumed_bitwise_at_any_step_of_a_window(tmp_path: Path) -> None:
    """At 7 and 14 one fragment is on the way, and at 15 it has just been applied."""
    for (own, shared, _), *stopped in run_ranks(train_straight_and_stopped, 2, tmp_path):
        for mine, ours, steps in stopped:
            assert steps == STEPS
            assert all(torch.equal(a, b) for a, b in zip(own + shared, mine + ours))


def save_at_ten(world: World, directory: Path) -> dict[str, Any]:
    model = net()
    outer = flare_dist.outer(model, **RESUMED)
    optimizer = adamw(model)
    for step in range(1, 11):
        inner_step(model, optimizer, step, world.rank)
        outer.step(lr=LR)
    flare_dist.save_hook_state(outer, directory)
    return outer.state_dict()


def load_at_ten(world: World, directory: Path, missing: str = "raise") -> dict[str, Any]:
    outer = flare_dist.outer(net(seed=3), **RESUMED)
    flare_dist.load_hook_state(outer, directory, missing=missing)
    return outer.state_dict()


@pytest.mark.parametrize("replicas", [2, 4])
def test_another_number_of_replicas_keeps_the_means(tmp_path: Path, replicas: int) -> None:
    before = run_ranks(save_at_ten, 3, tmp_path)
    after = run_ranks(load_at_ten, replicas, tmp_path)
    for name in before[0]["memory"]:
        for kind in ("residual", "local"):
            means = [sum(one["memory"][name][kind] for one in states) / len(states) for states in (before, after)]
            torch.testing.assert_close(*means, rtol=1e-5, atol=1e-7)
        assert all(torch.equal(one["shared"]["start"][name], before[0]["shared"]["start"][name]) for one in after)
    for kept in (one["shared"] for one in after):
        for kind in ("arrived", "optimizer"):
            assert kept[kind].keys() == before[0]["shared"][kind].keys() != set()
        assert all(torch.equal(mean, before[0]["shared"]["arrived"][name]) for name, mean in kept["arrived"].items())
        for name, own in kept["optimizer"].items():
            moved = before[0]["shared"]["optimizer"][name]
            assert own.keys() == moved.keys()
            assert all(torch.equal(own[kind], moved[kind]) for kind in own)


def test_a_replica_whose_file_is_lost_begins_with_the_global_weights(tmp_path: Path) -> None:
    before = run_ranks(save_at_ten, 2, tmp_path)
    next(tmp_path.glob("*-00001-of-*")).unlink()
    after = run_ranks(load_and_warn, 2, tmp_path)
    start = before[0]["shared"]["start"]
    assert all(torch.equal(after[1]["memory"][name]["local"], start[name]) for name in start)
    assert all(torch.equal(after[0]["memory"][name]["local"], before[0]["memory"][name]["local"]) for name in start)


def load_and_warn(world: World, directory: Path) -> dict[str, Any]:
    with pytest.warns(UserWarning, match="rank 1 is lost"):
        return load_at_ten(world, directory, "zero")


def refuse_on_all(world: World, what: str) -> str:
    model: nn.Module = net()
    settings: dict[str, Any] = {}
    if what == "another model" and world.rank == 1:
        model = nn.Linear(10, 2)
    elif what == "replicas that are one DDP":
        model = DistributedDataParallel(model)
    elif what == "nothing trained":
        model.requires_grad_(False)
    elif what == "too many fragments":
        settings = {"fragments": 6}
    elif what == "a setting of steps":
        settings = {"preconditioner": "adam"}
    elif what == "a pull to nothing":
        settings = {"pull": 0.1}
    elif what == "a pull without a rate":
        settings = {"pull": 0.1, "density": 0.1}
    with pytest.raises(ValueError, match="outer") as error:
        flare_dist.outer(model, **settings).step()
    return str(error.value)


REFUSED = {
    "another model": " has another 0.",
    "replicas that are one DDP": "whose gradients it averages in every step",
    "nothing trained": "no parameters with requires_grad",
    "too many fragments": "outer.fragments: each needs a tensor of its own, got 6 for 4 tensors",
    "a setting of steps": "outer: unknown choice, got 'preconditioner'",
    "a pull to nothing": "outer.pull: leads to what error feedback holds, got 0.1 without any; send less",
    "a pull without a rate": "outer.step: the pull is outer.pull times the rate of the inner optimizer, got no lr",
}


def refuse_each(world: World) -> dict[str, str]:
    return {what: refuse_on_all(world, what) for what in REFUSED}


def test_what_does_not_fit_is_refused_in_one_line_on_all_replicas() -> None:
    for found in run_ranks(refuse_each, 2):
        for what, said in found.items():
            assert REFUSED[what] in said
            assert "\n" not in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "outer.every"),
        ({"every": 2.5}, "outer.every: must be a whole number, got 2.5"),
        ({"every": True}, "outer.every: must be a whole number, got True"),
        ({"outer_options": {"lr": -1.0}}, "outer.outer_options: Invalid learning rate: -1.0, got"),
        ({"every": 30, "fragments": 4}, "choose a divisor of 30"),
        ({"every": 4, "delay": 4}, "choose less than 4"),
        ({"mix": 1.0}, "outer.mix"),
        ({"pull": -0.1}, "outer.pull"),
        ({"pull_percentile": 100.0}, "outer.pull_percentile"),
        ({"outer_optimizer": "lion"}, "outer.outer_optimizer"),
        ({"outer_options": {"lr": 1, "moment": 0.9}}, "moment"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OuterSettings(**settings)


def test_alone_there_is_nobody_to_exchange_with() -> None:
    with pytest.raises(ValueError, match="outer: one replica has nobody"):
        flare_dist.outer(net())


def grow_infinite(world: World) -> str:
    model = net()
    outer = flare_dist.outer(model, every=2, density=0.1)
    with torch.no_grad():
        if world.rank == 1:
            next(model.parameters())[0] = float("nan")
    outer.step()
    with pytest.raises(FloatingPointError) as error:
        outer.step()
    return str(error.value)


def test_weights_that_are_not_finite_end_all_replicas() -> None:
    assert {said.partition(";")[0] for said in run_ranks(grow_infinite, 2)} == {
        "outer: the weights of a replica are not finite"
    }


def train_in_bfloat16(world: World) -> tuple[list[Tensor], set[torch.dtype]]:
    model = net().bfloat16()
    outer = flare_dist.outer(model, preset="sparseloco", every=3, offload=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 7):
        inputs, labels = batch(step, world.rank)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs.bfloat16()).float(), labels).backward()
        optimizer.step()
        outer.step()
    kinds = {weight.dtype for fragment in outer.fragments for weight in fragment.global_weights.values()}
    return [parameter.detach() for parameter in model.parameters()], kinds


def test_global_weights_of_bfloat16_are_kept_in_float32() -> None:
    (first, kinds), (second, _) = run_ranks(train_in_bfloat16, 2)
    assert kinds == {torch.float32}
    assert all(a.dtype == torch.bfloat16 and torch.equal(a, b) for a, b in zip(first, second))


def train_presets(world: World) -> dict[str, tuple[list[Tensor], list[Tensor], int]]:
    return {preset: train(world, {"preset": preset, "every": 6}, 12) for preset in PRESETS}


def send_large(world: World) -> list[int]:
    """What one window of the dense and of the sparse preset sends, of a matrix of whole blocks."""
    sent = []
    for preset in ("diloco", "sparseloco"):
        model = nn.Linear(2048, 2048, bias=False)
        outer = flare_dist.outer(model, preset=preset, every=1)
        with torch.no_grad():
            model.weight.add_(torch.randn(2048, 2048))
        outer.step()
        sent.append(outer.wire_bytes)
    return sent


def test_sparseloco_sends_a_hundredth_of_dense_windows_among_four() -> None:
    """Each gather sends a message three times, and a ring a dense vector one and a half times."""
    dense, sparse = run_ranks(send_large, 4)[0]
    assert sparse <= dense / 100


def test_a_preset_trains_and_sends_fewer_bytes_than_every_step() -> None:
    first, second = run_ranks(train_presets, 2)
    numel = sum(parameter.numel() for parameter in net().parameters())
    for preset, (own, _, wire_bytes) in first.items():
        assert all(torch.equal(a, b) for a, b in zip(own, second[preset][0]))  # step 12 has just set them
        assert 0 < wire_bytes <= 2 * (2 * 4 * numel + 2 * 8)  # eight to tell the step


def train_sharded(world: World, shards: int, density: float, directory: Path | None) -> list[Tensor]:
    """Train replicas of `shards` ranks each; all ranks of a replica see its batches. Returns the whole weights."""
    mesh = init_device_mesh("cpu", (world.size // shards, shards), mesh_dim_names=("replicate", "shard"))
    if shards > 1:
        partly = net()
        fully_shard(partly[2], mesh=mesh["shard"])
        with pytest.raises(ValueError, match=r"a replica has 2 ranks, which would train 0\.weight each on its own"):
            flare_dist.outer(partly, mesh)
    model = net()
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh["shard"])
    with train_on(mesh, model, density, directory).averaged():
        whole: Any = list(model.parameters())
        return [parameter.full_tensor().detach().clone() for parameter in whole]


def train_on(mesh: DeviceMesh, model: nn.Module, density: float, directory: Path | None) -> flare_dist.OuterSteps:
    """Take twelve steps, saved and loaded in the middle of a window if there is a directory."""
    settings: dict[str, Any] = {
        "every": 4,
        "fragments": 2,
        "delay": 1,
        "density": density,
        "scope": "block",
        "block": 2,
    }
    outer = flare_dist.outer(model, mesh, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(1, 13):
        inner_step(model, optimizer, step, mesh.get_local_rank("replicate"))
        outer.step()
        if directory and step == 5:
            flare_dist.save_hook_state(outer, directory)
            outer = flare_dist.outer(model, mesh, **settings)
            flare_dist.load_hook_state(outer, directory)
    return outer


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_replicas_of_two_shards_are_those_of_one(tmp_path: Path, density: float) -> None:
    """Bitwise: no block crosses a row, and the gradient of two shards is the mean of two equal ones."""
    alone = run_ranks(train_sharded, 2, 1, density, None)
    for one in run_ranks(train_sharded, 4, 2, density, tmp_path):
        assert all(torch.equal(a, b) for a, b in zip(one, alone[0]))
    assert len(list(tmp_path.glob("sparse-hook-outer-shard-?-of-2-0000?-of-00002-step-5.pt"))) == 4
    if density == 1:
        for said in run_ranks(load_on_other_shards, 2, tmp_path):
            assert "holds outer steps of replicas of 2 ranks, got another number; load them with as many" in said


def load_on_other_shards(world: World, directory: Path) -> str:
    with pytest.raises(ValueError, match="outer steps") as error:
        flare_dist.load_hook_state(flare_dist.outer(net(), every=4), directory)
    return str(error.value)


def train_behind_ddp(world: World, directory: Path) -> list[Tensor]:
    """The same replicas, whose two ranks DistributedDataParallel keeps alike; saved and loaded in mid-window."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = DistributedDataParallel(net(), process_group=mesh.get_group("shard"))
    with train_on(mesh, model, 0.5, directory).averaged():
        return [parameter.detach().clone() for parameter in model.parameters()]


def test_replicas_may_be_ddp_inside(tmp_path: Path) -> None:
    alone = run_ranks(train_sharded, 2, 1, 0.5, None)
    for one in run_ranks(train_behind_ddp, 4, tmp_path):
        assert all(torch.equal(a, b) for a, b in zip(one, alone[0]))


def look_between(world: World) -> tuple[Tensor, list[bool]]:
    """Train two replicas of a layer that only the root shards, with evaluations where a user may have them."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    inputs = torch.ones(3, 10)

    def trained(looks: bool) -> tuple[Tensor, list[bool]]:
        torch.manual_seed(0)
        model: Any = fully_shard(nn.Linear(10, 3), mesh=mesh["shard"])
        sharded: list[Any] = list(model.parameters())
        as_computed: list[bool] = []

        def look() -> None:
            with torch.no_grad():
                found = model(inputs)
            weight, bias = (each.full_tensor() for each in sharded)
            as_computed.append(torch.equal(found, F.linear(inputs, weight, bias)))

        if looks:
            look()
        outer = flare_dist.outer(model, mesh, every=3)
        optimizer = torch.optim.SGD(sharded, lr=0.1)
        for step in range(1, 5):
            F.cross_entropy(model(batch(step, world.rank)[0]), batch(step, world.rank)[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
            if looks:
                look()
            outer.step()
            if looks:
                look()
                with outer.averaged():
                    look()
        outer.finish()
        if looks:
            look()
        return torch.cat([each.full_tensor().flatten() for each in sharded]).detach(), as_computed

    straight, _ = trained(looks=False)
    looked, as_computed = trained(looks=True)
    return straight - looked, as_computed


def test_evaluations_compute_with_the_weights_that_are_there_and_change_nothing() -> None:
    """FSDP2 keeps what a forward without a backward has gathered of the root."""
    for difference, as_computed in run_ranks(look_between, 2):
        assert not difference.any()
        assert as_computed == [True] * 14


def refuse_short(world: World) -> list[str]:
    """What each rank says of weights of which the second of two shards has no rows, or of fewer than fragments."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    said = []
    for trained in ((2,), (0, 2)):
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False))
        for layer in (0, 2):
            model[layer].requires_grad_(layer in trained)
        fully_shard(model, mesh=mesh["shard"])
        with pytest.raises(ValueError, match="outer") as error:
            flare_dist.outer(model, mesh, fragments=len(trained))
        said.append(str(error.value))
    return said


def test_weights_of_too_few_rows_are_refused_on_all_shards_alike() -> None:
    first, *others = run_ranks(refuse_short, 4)
    assert first[0].startswith("outer: each rank needs rows of some trained weight, got 2.weight of shape (1, 6)")
    assert first[1] == "outer.fragments: each needs a tensor of its own, got 2 for 1 tensors; choose fewer"
    assert others == [first] * 3


def load_more(world: World, directory: Path) -> str:
    model = net()
    model[0].requires_grad_(False)
    outer = flare_dist.outer(model, every=2)
    flare_dist.save_hook_state(outer, directory)
    outer = flare_dist.outer(model.requires_grad_(True), every=2)
    with pytest.raises(ValueError, match="outer") as error:
        flare_dist.load_hook_state(outer, directory)
    return str(error.value)


def test_a_memory_without_what_is_trained_by_now_is_refused(tmp_path: Path) -> None:
    for said in run_ranks(load_more, 2, tmp_path):
        assert "outer: the memory was saved while 0.weight, 0.bias was frozen, got it trained; load the" in said


def refuse_meshes(world: World) -> list[str]:
    said = []
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    crossing = net()
    fully_shard(crossing, mesh=mesh)  # native: every step averages over replicas
    inside = net()
    fully_shard(inside, mesh=mesh["shard"])
    nameless = init_device_mesh("cpu", (2,), mesh_dim_names=("workers",))
    over_all = net()
    fully_shard(over_all, mesh=init_device_mesh("cpu", (2,)))
    flat = net()
    flat.append(type("FullyShardedDataParallel", (nn.Identity,), {})())
    given: Any
    for model, given in (
        (crossing, mesh),
        (inside, None),
        (inside, nameless),
        (over_all, mesh),
        (flat, None),
        (inside, "mesh"),
    ):
        with pytest.raises(ValueError, match="outer") as error:
            flare_dist.outer(model, given)
        said.append(str(error.value))
    return said


def test_meshes_that_do_not_fit_are_refused() -> None:
    for said in run_ranks(refuse_meshes, 2):
        assert "sharded on a mesh with replicate" in said[0]
        assert "the model is sharded, got no mesh" in said[1]
        assert "needs one dimension named replicate or dp_replicate, got workers" in said[2]
        assert "the model is sharded over the ranks [0, 1], and a replica of the mesh is [" in said[3]
        assert "shard the model by fully_shard (FSDP2)" in said[4]
        assert "outer.mesh: must be a DeviceMesh, got str" in said[5]
