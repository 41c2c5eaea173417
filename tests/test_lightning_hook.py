"""The hook in Lightning's Trainer: the bits of a bare loop, and of a run that was not interrupted."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import flare_dist
from flare_dist.comm.world import World
from flare_dist.engines.callback_run import HookRun
from tests.helpers.hook import (
    CLASSES,
    INPUTS,
    assert_same_memory,
    break_off,
    flat,
    make_accelerator,
    net,
    said_by,
)
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("lightning"), reason="lightning is not installed")

STEPS = 6
HALF = 3
ACCUMULATE = 2
HOOK: dict[str, Any] = {"density": 0.05}
End = tuple[Tensor, dict[str, Any]]  # weights and memory


def own_batches() -> DataLoader[Any]:
    """Make the batches of this rank, in their order, an epoch of HALF steps, for Lightning resumes between epochs."""
    rng = torch.Generator().manual_seed(1)
    count = HALF * ACCUMULATE * 2 * 4
    data = TensorDataset(torch.randn(count, INPUTS, generator=rng), torch.randint(CLASSES, (count,), generator=rng))
    return DataLoader(data, batch_size=4, sampler=DistributedSampler(data, shuffle=False))


def loss_of(model: Any, batch: list[Tensor]) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def module(make: Any) -> Any:
    """Make Lightning's module around the net."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            return loss_of(self, batch)

        def configure_optimizers(self) -> Any:
            return make(self.parameters())

    return Module()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def trained(directory: Path, resume: Path | None = None, make: Any = sgd, **settings: Any) -> End:
    """Train with the callback, from a checkpoint if one is given."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    callback = flare_dist.LightningHookCallback(resume_from=settings.pop("start", None), **settings.pop("hook", HOOK))
    every = ModelCheckpoint(directory, "{step}", save_top_k=-1, every_n_train_steps=HALF)
    newest = ModelCheckpoint(directory / "newest", "{step}", save_last="link", every_n_train_steps=1)  # and no others
    model = module(make)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=settings.pop("strategy", "ddp"),
        max_steps=settings.pop("steps", STEPS),
        accumulate_grad_batches=ACCUMULATE,
        default_root_dir=directory,
        callbacks=[callback, every, newest, *settings.pop("more", [])],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(model, own_batches(), ckpt_path=None if resume is None else str(resume))
    assert callback.hook is not None
    return flat(model), callback.hook.state_dict()


def broken_off(directory: Path) -> tuple[set[int], list[str]]:
    """Save after a backward that was broken off; returns the steps that are noted, and what resuming says."""
    from lightning.pytorch.callbacks import Callback, OnExceptionCheckpoint
    from lightning.pytorch.strategies import DDPStrategy

    class BreakOff(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == HALF and batch_idx % ACCUMULATE == ACCUMULATE - 1:
                first = pl_module.net.first  # whose gradients come last
                first.register_forward_hook(lambda module, inputs, output: output.register_hook(break_off) and None)

    more = [BreakOff(), OnExceptionCheckpoint(directory, "broken")]
    with pytest.raises(RuntimeError, match="broken off"):
        trained(directory, more=more, strategy=DDPStrategy(bucket_cap_mb=1e-4))
    checkpoint = directory / "broken.ckpt"
    noted = torch.load(checkpoint, weights_only=False)["callbacks"]["LightningHookCallback"]["step"]
    files = [torch.load(path) for path in checkpoint.with_name("broken.ckpt.hook").glob("*.pt")]
    steps = {noted, *(saved["step"] for saved in files)}
    return steps, said_by(lambda: trained(directory / "on", resume=checkpoint))


def bare() -> End:
    """Take the Trainer's steps in a loop of DistributedDataParallel."""
    model = net()
    ddp = DistributedDataParallel(model)
    state = flare_dist.attach(ddp, **HOOK)
    optimizer = sgd(ddp.parameters())
    for number, batch in enumerate([*own_batches(), *own_batches()]):
        is_last = number % ACCUMULATE == ACCUMULATE - 1
        with nullcontext() if is_last else ddp.no_sync():
            (loss_of(ddp, batch) / ACCUMULATE).backward()
        if is_last:
            optimizer.step()
            optimizer.zero_grad()
    return flat(model), state.state_dict()


OUTER: dict[str, Any] = {"every": 2, "outer_options": {"lr": 0.7, "momentum": 0.9, "nesterov": True}, "density": 0.1}


def momentum_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def bare_outer() -> Tensor:
    """Take the Trainer's steps on this replica, and the outer ones behind them, in a loop of one's own."""
    model = net()
    outer = flare_dist.outer(model, **OUTER)
    optimizer = momentum_sgd(model.parameters())
    for number, batch in enumerate([*own_batches(), *own_batches()]):
        (loss_of(model, batch) / ACCUMULATE).backward()
        if number % ACCUMULATE == ACCUMULATE - 1:
            optimizer.step()
            optimizer.zero_grad()
            outer.step()
    outer.finish()
    return flat(model)


def everything(world: World, directory: str) -> dict[str, Any]:
    """Do it all in one pair of processes, for importing Lightning takes longer."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    make_accelerator(world)  # sets what a launcher would
    warnings.filterwarnings("ignore", module="lightning")  # what it says of itself and of the machine
    place = Path(directory)
    half = place / f"step={HALF}.ckpt"
    found: dict[str, Any] = {"straight": trained(place), "bare": bare()}
    found["files"] = sorted(str(path.relative_to(place)) for path in place.rglob("sparse-hook*"))
    world.wait_for_all()
    found["resumed"] = trained(place / "again", resume=half)
    found["from link"] = trained(place / "more", resume=place / "newest" / "last.ckpt", steps=STEPS + 1)
    moved = place / f"moved-{world.rank}.ckpt"
    shutil.copy(half, moved)
    found["moved"] = trained(place / "other", resume=moved, start=Path(f"{half}.hook"))
    found["missing"] = said_by(lambda: trained(place / "other", resume=moved))
    wrong: dict[str, Any] = {"hook": {"preconditioner": "adam"}, "gradient_clip_val": 1.0, "make": torch.optim.AdamW}
    found["refused"] = said_by(lambda: trained(place / "other", **wrong))
    found["broken off"] = broken_off(place / "broken")
    remote = [ModelCheckpoint("memory://checkpoints")]
    found["remote"] = said_by(lambda: trained(place / "other", more=remote))
    with_momentum: dict[str, Any] = {"hook": {"outer": OUTER}, "make": momentum_sgd}
    found["outer"] = trained(place / "outer", **with_momentum)
    found["bare outer"] = bare_outer()
    world.wait_for_all()
    half = place / "outer" / f"step={HALF}.ckpt"
    found["saved"] = torch.load(half, weights_only=False)["state_dict"]
    (own,) = half.with_name(f"{half.name}.hook").glob("sparse-hook-outer-00000-*")
    found["global"] = torch.load(own)["shared"]["start"]
    found["outer, resumed"] = trained(place / "outer again", resume=half, **with_momentum)
    return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(everything, 2, str(tmp_path_factory.mktemp("lightning")), seconds=120)


def test_the_trainer_has_the_bits_of_the_bare_loop(seen: Any) -> None:
    for rank in seen:
        weights, memory = rank["straight"]
        expected, remembered = rank["bare"]
        assert torch.equal(weights, expected)
        assert memory["step"] == remembered["step"] == STEPS
        for name, own in remembered["memory"].items():
            assert torch.equal(memory["memory"][f"net.{name}"]["residual"], own["residual"])
    first, second = [rank["bare"][1]["memory"]["first.weight"]["residual"] for rank in seen]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("how", ["resumed", "moved"])
def test_a_resumed_run_has_the_bits_of_the_straight_one(seen: Any, how: str) -> None:
    for rank in seen:
        assert torch.equal(rank[how][0], rank["straight"][0])
        assert_same_memory(rank[how][1], rank["straight"][1])


def test_a_link_to_a_checkpoint_leads_to_its_memory(seen: Any) -> None:
    for rank in seen:
        assert rank["from link"][1]["step"] == STEPS + 1


def test_memory_is_beside_each_checkpoint_as_long_as_it_is_there(seen: Any) -> None:
    for rank in seen:
        assert rank["files"] == [
            f"{place}.ckpt.hook/sparse-hook-0000{own}-of-00002-step-{place[-1]}.pt"
            for place in ("newest/step=6", "step=3", "step=6")
            for own in range(2)
        ]


def test_a_missing_memory_is_one_warning_of_what_is_lost(seen: Any) -> None:
    (said,) = [said for said in seen[0]["missing"] if "sparse hook" in said]
    assert said.startswith("resume_from: no memory of the sparse hook in ")
    assert "lost (residual: zero from now on)" in said
    assert not [said for said in seen[1]["missing"] if "sparse hook" in said]


def test_what_would_spoil_updates_is_refused_with_what_to_write(seen: Any) -> None:
    for rank in seen:
        (said,) = rank["refused"]
        assert said.startswith("refused: LightningHookCallback: preconditioner=adam returns updates, which AdamW would")
        assert "write torch.optim.SGD in configure_optimizers, Trainer(gradient_clip_val=None)" in said


def test_a_checkpoint_after_a_broken_backward_goes_with_its_memory(seen: Any) -> None:
    for rank in seen:
        steps, said = rank["broken off"]
        assert steps == {HALF}
        assert not [line for line in said if "sparse" in line or "refused" in line]


def saving(local_rank: int, removes: bool) -> tuple[flare_dist.LightningHookCallback, Any, list[str]]:
    """Make a callback with a memory, a strategy of one rank that it saves with, and the list of what that saves."""
    saved: list[str] = []
    strategy = SimpleNamespace(
        local_rank=local_rank,
        save_checkpoint=lambda checkpoint, filepath: saved.append(filepath),
        remove_checkpoint=lambda filepath: Path(filepath).unlink() if removes else None,
    )
    callback = flare_dist.LightningHookCallback(**HOOK)
    callback._run = HookRun(flare_dist.SparseHookState(net(), **HOOK))
    callback._save_with(strategy)
    return callback, strategy, saved


@pytest.mark.parametrize(("local_rank", "removes"), [(0, True), (0, False), (1, False)])
def test_a_link_goes_without_the_memory_and_a_checkpoint_with_it(
    tmp_path: Path, local_rank: int, removes: bool
) -> None:
    _, strategy, _ = saving(local_rank, removes)
    checkpoint = tmp_path / "step=1.ckpt"
    checkpoint.touch()
    strategy.save_checkpoint({"optimizer_states": []}, str(checkpoint))
    (memory,) = tmp_path.glob("*/*.pt")
    link = tmp_path / "last-1.ckpt"
    link.symlink_to(checkpoint.name)
    strategy.remove_checkpoint(str(link))
    assert memory.exists()
    strategy.remove_checkpoint(str(checkpoint))
    assert memory.exists() == (local_rank != 0)  # one rank of each machine removes it


def test_a_checkpoint_in_place_of_a_link_has_a_memory_of_its_own(tmp_path: Path) -> None:
    _, strategy, _ = saving(0, removes=True)
    (tmp_path / "last.ckpt").symlink_to("step=1.ckpt")
    strategy.save_checkpoint({"optimizer_states": []}, str(tmp_path / "last.ckpt"))
    assert [path.name for path in tmp_path.glob("*.hook")] == ["last.ckpt.hook"]


def test_what_is_saved_remotely_is_refused_unless_it_is_none_to_resume_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    _, strategy, saved = saving(0, removes=False)
    with pytest.raises(ValueError, match=r"^LightningHookCallback: .*, got s3://bucket/x\.ckpt; give "):
        strategy.save_checkpoint({"optimizer_states": []}, "s3://bucket/x.ckpt")
    assert not saved
    strategy.save_checkpoint({}, "s3://bucket/x.ckpt")
    strategy.remove_checkpoint("s3://bucket/x.ckpt")
    assert saved == ["s3://bucket/x.ckpt"]
    assert not list(tmp_path.iterdir())
    for rank in seen:  # before the first step
        (said,) = rank["remote"]
        assert "LightningHookCallback: " in said
        assert ", got memory://checkpoints; give " in said


def test_outer_steps_are_those_of_a_bare_loop_and_resume_in_mid_window(seen: Any) -> None:
    for rank in seen:
        assert torch.equal(rank["outer"][0], rank["bare outer"])
        assert torch.equal(rank["outer"][0], rank["outer, resumed"][0])
        assert torch.equal(rank["outer"][0], seen[0]["outer"][0])


def test_a_checkpoint_in_mid_window_holds_the_global_weights_that_were_validated(seen: Any) -> None:
    assert set(seen[0]["global"]) == set(seen[0]["saved"])
    for name, weight in seen[0]["global"].items():
        assert torch.equal(seen[0]["saved"][name], weight.view_as(seen[0]["saved"][name]))
