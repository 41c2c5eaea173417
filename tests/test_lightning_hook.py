"""The hook in Lightning's Trainer: the bits of a bare loop, and of a run that was not interrupted."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import flare_dist
from flare_dist.comm.world import World
from tests.helpers.hook import CLASSES, INPUTS, assert_same_memory, flat, make_accelerator, net, said_by
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
        strategy="ddp",
        max_steps=settings.pop("steps", STEPS),
        accumulate_grad_batches=ACCUMULATE,
        default_root_dir=directory,
        callbacks=[callback, every, newest],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(model, own_batches(), ckpt_path=None if resume is None else str(resume))
    assert callback.hook is not None
    return flat(model), callback.hook.state_dict()


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


def everything(world: World, directory: str) -> dict[str, Any]:
    """Do it all in one pair of processes, for importing Lightning takes longer."""
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
