"""The hook in transformers.Trainer: the bits of a bare loop, and of a run that was not interrupted."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from flare_dist.engines.outer_run import OuterRun
from tests.helpers.hook import assert_same_memory, flat, make_accelerator, net, said_by
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not installed")

STEPS = 6
HALF = 3
ADAM: dict[str, Any] = {"optim": "adamw_torch", "adam_beta1": 0.0, "adam_beta2": 0.999}
SGD: dict[str, Any] = {"optim": "sgd", "max_grad_norm": 0}
AUTO = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
ENGINE: dict[str, Any] = {
    "zero_optimization": {"stage": 1, "overlap_comm": False},
    "zero_allow_untested_optimizer": True,
} | dict.fromkeys(AUTO, "auto")
End = tuple[Tensor, dict[str, Any]]  # weights and memory


def language_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes))
    return model


def make_trainer(directory: Path, callbacks: Any = (), accumulate: int = 1, **arguments: Any) -> Any:
    """Make a Trainer of this rank; make_accelerator has told it of the others."""
    from transformers import Trainer, TrainingArguments

    AcceleratorState._reset_state(True)
    tokens = torch.randint(40, (STEPS * accumulate * 4, 8), generator=torch.Generator().manual_seed(1))
    settings = {
        "output_dir": str(directory),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "max_steps": STEPS,
        "save_steps": HALF,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Trainer(
        model=language_model(),
        args=TrainingArguments(**settings | arguments),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=list(callbacks),
    )


def trained(directory: Path, resume: Path | None = None, start: Any = None, **settings: Any) -> End:
    """Train with the callback, from a checkpoint if one is given."""
    callback = flare_dist.HookCallback(resume_from=start, **settings.pop("hook"))
    trainer = make_trainer(directory, [callback, *settings.pop("more", [])], **settings)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    assert callback.hook is not None
    return flat(trainer.model), callback.hook.state_dict()


def batches_of(trainer: Any, accumulate: int) -> Iterator[tuple[list[Any], Any]]:
    """Yield the micro-batches of each step as the Trainer draws them, and their number of tokens."""
    iterator = iter(trainer.get_train_dataloader())
    for _ in range(STEPS):
        yield trainer.get_batch_samples(iterator, accumulate, torch.device("cpu"))


def bare(trainer: Any, optimizer_of: Any, accumulate: int, hook: dict[str, Any]) -> End:
    """Take the Trainer's steps in a loop of DistributedDataParallel."""
    ddp = DistributedDataParallel(language_model())
    state = flare_dist.attach(ddp, **hook)
    optimizer = optimizer_of(ddp.parameters())
    for micro_batches, count in batches_of(trainer, accumulate):
        for place, batch in enumerate(micro_batches):
            with nullcontext() if place == accumulate - 1 else ddp.no_sync():
                trainer.compute_loss(ddp, dict(batch), num_items_in_batch=count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return flat(ddp), state.state_dict()


def accelerated(world: World, trainer: Any, optimizer_of: Any, accumulate: int, hook: dict[str, Any]) -> End:
    """Take the Trainer's steps in a loop of Accelerate."""
    accelerator = make_accelerator(world)
    model = language_model()
    prepared, optimizer = accelerator.prepare(model, optimizer_of(model.parameters()))
    state = flare_dist.attach(accelerator, prepared, **hook)
    for micro_batches, count in batches_of(trainer, accumulate):
        for place, batch in enumerate(micro_batches):
            with nullcontext() if place == accumulate - 1 else accelerator.no_sync(prepared):
                accelerator.backward(trainer.compute_loss(prepared, dict(batch), num_items_in_batch=count))
        optimizer.step()
        optimizer.zero_grad()
    return flat(model), state.state_dict()


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int, Any]] = {
    "ec": ({"density": 0.05}, ADAM, 2, lambda own: torch.optim.AdamW(own, 0.01, (0.0, 0.999), weight_decay=0)),
    "adam": ({"density": 0.05, "preconditioner": "adam"}, SGD, 2, lambda own: torch.optim.SGD(own, 0.01)),
}


def loops(world: World, directory: Path, case: str) -> dict[str, End]:
    """Take the same steps in each kind of loop."""
    hook, arguments, accumulate, optimizer_of = CASES[case]
    arguments = {"max_grad_norm": 0, **arguments, "accumulate": accumulate, "hook": hook}
    ends = {"Trainer": trained(directory, **arguments)}
    trainer = make_trainer(directory, accumulate=accumulate)
    ends["bare"] = bare(trainer, optimizer_of, accumulate, hook)
    ends["Accelerate"] = accelerated(world, trainer, optimizer_of, accumulate, hook)
    half = directory / f"checkpoint-{HALF}"
    if case == "ec":
        ends["resumed"] = trained(directory, resume=half, **arguments)
        return ends
    moved = directory / f"moved-{world.rank}"
    shutil.copytree(half, moved)
    ends["resumed"] = trained(directory / "other", resume=moved, start=moved, **arguments)
    return ends


def in_engine(directory: Path) -> dict[str, End]:
    """Train in a DeepSpeed engine at ZeRO stage 1, straight and resumed."""
    hook = {"density": 0.05, "preconditioner": "adam"}
    settings: dict[str, Any] = {**SGD, "hook": hook, "deepspeed": ENGINE}
    straight = trained(directory, **settings)
    return {"Trainer": straight, "resumed": trained(directory, directory / f"checkpoint-{HALF}", **settings)}


def smaller_batches(directory: Path) -> tuple[Tensor, End]:
    """Train in a second engine, since the first was out of memory: without the hook, and sending all through it."""
    from transformers import TrainerCallback

    class OutOfMemory(TrainerCallback):
        has_been = False

        def on_pre_optimizer_step(self, *arguments: Any, **others: Any) -> None:
            if not self.has_been:
                self.has_been = True
                raise RuntimeError("CUDA out of memory.")

    settings: dict[str, Any] = {**SGD, "deepspeed": ENGINE, "save_strategy": "no", "auto_find_batch_size": True}
    plain = make_trainer(directory, [OutOfMemory()], **settings)
    plain.train()
    return flat(plain.model), trained(directory, more=[OutOfMemory()], hook={"density": 1}, **settings)


def told(world: World, directory: Path) -> dict[str, list[str]]:
    """Collect what the callback says of what goes wrong."""
    place = directory / f"checkpoint-{HALF}"
    hook = {"density": 0.05, "preconditioner": "adam"}
    world.wait_for_all()
    if world.rank == 0:
        for path in place.glob("sparse-hook-*"):
            path.unlink()
    world.wait_for_all()
    return {
        "missing": said_by(lambda: trained(directory, resume=place, hook=hook, accumulate=2, **SGD)),
        "defaults": said_by(lambda: trained(directory / "wrong", hook=hook)),
    }


def twice(directory: Path) -> tuple[int, bool]:
    """Train two times with one Trainer; returns the hook's steps, and whether it stayed the same."""
    callback = flare_dist.HookCallback(density=0.05)
    trainer = make_trainer(directory, [callback], max_steps=2, save_strategy="no", max_grad_norm=0, **ADAM)
    trainer.train()
    first = callback.hook
    trainer.train()
    assert callback.hook is not None
    return callback.hook.step, first is callback.hook


def everything(world: World, directory: str) -> dict[str, Any]:
    """Do it all in one pair of processes, for importing transformers takes longer."""
    make_accelerator(world)  # sets what a launcher would
    import transformers.trainer  # noqa: F401

    gc.freeze()  # for the Trainer collects garbage again and again
    place = Path(directory)
    found: dict[str, Any] = {case: loops(world, place / case, case) for case in CASES}
    found["files"] = sorted(path.name for path in (place / "ec" / f"checkpoint-{STEPS}").glob("sparse-hook-*"))
    found["told"] = told(world, place / "adam")
    found["twice"] = twice(place / "twice")
    warnings.filterwarnings("ignore", r"`torch\.distributed\.all_gather_into_tensor` is deprecated", FutureWarning)
    found["engine"] = in_engine(place / "engine")  # last, for it sets variables of the process
    found["smaller"] = smaller_batches(place / "smaller")
    return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(everything, 2, str(tmp_path_factory.mktemp("trainer")), seconds=120)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("other", ["Trainer", "Accelerate", "resumed"])
def test_each_loop_and_a_resumed_one_have_the_bits_of_the_bare_loop(seen: Any, case: str, other: str) -> None:
    for rank in seen:
        for end in rank[case].values():
            assert end[1]["step"] == STEPS
        assert torch.equal(rank[case][other][0], rank[case]["bare"][0])
        assert_same_memory(rank[case][other][1], rank[case]["bare"][1])
    residuals = [next(iter(rank[case]["bare"][1]["memory"].values()))["residual"] for rank in seen]
    assert not torch.equal(*residuals)


def test_an_engine_resumes_with_its_bits(seen: Any) -> None:
    for rank in seen:
        weights, memory = rank["engine"]["Trainer"]
        assert memory["step"] == STEPS
        assert torch.equal(weights, rank["engine"]["resumed"][0])
        assert_same_memory(memory, rank["engine"]["resumed"][1])


def test_each_rank_writes_its_memory_into_the_checkpoint(seen: Any) -> None:
    for rank in seen:
        assert rank["files"] == [f"sparse-hook-0000{rank}-of-00002-step-6.pt" for rank in range(2)]


def test_a_missing_memory_is_one_warning_of_what_is_lost(seen: Any) -> None:
    (said,) = seen[0]["told"]["missing"]
    assert said.startswith("resume_from: no memory of the sparse hook in ")
    assert "lost (residual, second_moment" in said
    assert seen[1]["told"]["missing"] == []


def test_the_trainer_s_defaults_are_refused_behind_a_preconditioner_with_the_arguments_to_write(seen: Any) -> None:
    for rank in seen:
        (said,) = rank["told"]["defaults"]
        assert said.startswith("refused: HookCallback: preconditioner=adam returns updates, which AdamW would scale")
        assert "clipping to norm 1 would shrink" in said
        assert said.endswith("write TrainingArguments(..., optim='sgd', max_grad_norm=0) (docs/guides/optimizers.md)")


def test_a_second_training_goes_on_with_the_same_memory(seen: Any) -> None:
    assert [rank["twice"] for rank in seen] == [(4, True)] * 2


def test_an_engine_for_smaller_batches_takes_the_place_of_the_first(seen: Any) -> None:
    for rank in seen:
        plain, (weights, memory) = rank["smaller"]
        assert memory["step"] == STEPS
        assert torch.equal(weights, plain)


OUTER: dict[str, Any] = {"every": 2, "outer_options": {"lr": 0.7, "momentum": 0.9, "nesterov": True}, "density": 0.1}
OUTER["pull"] = 0.25


def outer_trained(directory: Path, resume: Path | None = None, **arguments: Any) -> tuple[Any, Any]:
    callback = flare_dist.HookCallback(outer=OUTER)
    trainer = make_trainer(directory, [callback], **ADAM, **arguments)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, callback


def bare_outer(trainer: Any) -> Tensor:
    """Take the Trainer's steps on this replica, and the outer ones behind them, in a loop of one's own."""
    model = language_model()
    outer = flare_dist.outer(model, **OUTER)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, (0.0, 0.999), weight_decay=0)
    for micro_batches, count in batches_of(trainer, 1):
        trainer.compute_loss(model, dict(micro_batches[0]), num_items_in_batch=count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        outer.step(lr=0.01)
    outer.finish()
    return flat(model)


def outer_story(world: World, directory: Path) -> dict[str, Any]:
    make_accelerator(world)
    trainer, callback = outer_trained(directory / "straight", eval_strategy="no")
    told: dict[str, Any] = {"straight": flat(trainer.model), "wire": callback.hook.wire_bytes}
    told["bare"] = bare_outer(make_trainer(directory / "bare"))
    half = directory / "straight" / f"checkpoint-{HALF}"
    told["in the checkpoint"] = load_file(half / "model.safetensors")
    memory = f"sparse-hook-outer-{world.rank:05d}-of-00002-step-{HALF}.pt"
    told["global"] = torch.load(half / memory)["shared"]["start"]
    resumed, _ = outer_trained(directory / "straight", directory / "straight" / f"checkpoint-{HALF}")
    told["resumed"] = flat(resumed.model)
    told["refused"] = said_by(lambda: flare_dist.HookCallback(outer=OUTER, density=0.1))
    told["no settings"] = said_by(lambda: flare_dist.HookCallback(outer="diloco"))  # type: ignore[arg-type]
    return told


def load_best(world: World) -> tuple[Tensor, Tensor, Tensor]:
    """The weights that a trainer has loaded at its end, those behind it, and those of a later validation."""
    model = DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = OuterRun("HookCallback", model, [optimizer], OUTER)
    for parameter in model.parameters():
        parameter.detach().add_(world.rank + 1.0)
    run.step()
    run.show_global()  # to evaluate
    for parameter in model.parameters():
        parameter.detach().fill_(3.0)
    best = flat(model)
    run.leave()
    run.hide_global()
    behind = flat(model)
    with run.global_weights():
        later = flat(model)
    return best, behind, later


def test_weights_that_a_trainer_loads_at_its_end_stay() -> None:
    for best, behind, later in run_ranks(load_best, 2):
        assert torch.equal(behind, best)
        assert torch.equal(later, best)


def test_outer_steps_in_a_trainer_are_those_of_a_bare_loop_and_resume(tmp_path: Path) -> None:
    first, second = run_ranks(outer_story, 2, tmp_path)
    assert torch.equal(first["straight"], second["straight"])
    for told in (first, second):
        assert torch.equal(told["straight"], told["bare"])
        assert torch.equal(told["straight"], told["resumed"])
        assert told["wire"] > 0
        for name, weight in told["in the checkpoint"].items():
            assert torch.equal(weight, told["global"][name])
        assert "HookCallback.outer: takes all settings itself, got density beside it" in told["refused"][0]
        assert "HookCallback.outer: takes the settings of flare_dist.outer, got 'diloco'" in told["no settings"][0]
