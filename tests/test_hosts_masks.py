"""Sparse models on hosts of several ranks: masks and models of one rank, and checkpoints that move."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.host import Host
from flare_dist.comm.message import HEADER_NBYTES
from flare_dist.comm.world import World
from flare_dist.compression.bits import set_bits
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.cuts import Cut, ModelShard
from flare_dist.engines.config import EngineConfig
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.models.config import ModelConfig
from flare_dist.records.checkpoint_set import load_set
from flare_dist.records.rows import as_held, described
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.stage_one import begin_masks
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training import divided
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.criteria import flow
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.sparse_training.masks import bernoulli_mask, largest_mask, layers_of, mask_mismatch, random_mask
from flare_dist.sparse_training.pruning import PruningConfig, highest, layer_shares
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.batches import resident
from tests.helpers.hosts import resolved, zero
from tests.helpers.masks import HETERO, QUIET, config, draws
from tests.helpers.rounds import DATA
from tests.helpers.runs import assert_same_run, start, start_rank, tiny
from tests.ranks import run_ranks, single

SHARDS = 2


def net(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Layers whose rows two ranks cannot share evenly: one of them has none of the second one's."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 5, 3),
        nn.Tanh(),
        nn.Conv2d(5, 1, 1),
        nn.Flatten(),
        nn.Linear((input_shape[1] - 2) * (input_shape[2] - 2), 9),
        nn.ReLU(),
        nn.Linear(9, num_classes),
    )


def frozen(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The same, whose first layer and whose largest are not trained."""
    model = net(input_shape, num_classes)
    for layer in ("0", "4"):
        model.get_submodule(layer).requires_grad_(requires_grad=False)
    return model


BASE = Config(
    seed=2,
    rounds=2,
    data=DATA,
    model=ModelConfig(name=f"{__name__}:net"),
    clients=ClientsConfig(num=5, per_round=2, batch_size=8, lr=0.1, momentum=0.5, weighting="uniform"),
    compression=CompressionConfig(sparsifier="dense"),
    sparse_training=SparseTrainingConfig(method="jmwst", density=0.4, layers="all", init_frac=0.4, init_epochs=2),
)


def pruned(criterion: str, method: str = "pruned", **settings: Any) -> Config:
    pruning = PruningConfig(criterion=criterion, frac=0.6, batches=2, threshold=1e-4, **settings)
    return dataclasses.replace(config(BASE, method=method), pruning=pruning, rounds=1)


CONFIGS = {
    "jmwst": BASE,
    "spdst of unlike budgets": config(BASE, method="spdst", hetero=HETERO),
    "feddst": config(BASE, method="feddst"),
    "prunefl": pruned("random", "prunefl"),
    "nst": config(BASE, method="nst", growth="gradient"),
    "magnitude": pruned("magnitude"),
    "random": pruned("random", scope="erk"),
    "snip": pruned("snip", steps=2),
    "synflow": pruned("synflow", steps=3),
    "threshold": pruned("threshold"),
    "synflow, frozen layers": dataclasses.replace(
        pruned("synflow", steps=3), model=ModelConfig(name=f"{__name__}:frozen")
    ),
}
# Top-k under a mask is of each rank's rows, and so no run of one rank is the same.
BY_RANK = dataclasses.replace(
    BASE,
    clients=dataclasses.replace(BASE.clients, objective="flare"),
    compression=CompressionConfig(density=0.2),
    server=ServerConfig(momentum=0.5),
)
# Of ZeRO, which are played as well.
STAGES = {"jmwst": 3, "nst": 1, "snip": 3, "synflow": 1, "threshold": 2, "synflow, frozen layers": 3}
GATHERED = ("jmwst", "spdst of unlike budgets", "feddst", "nst")  # each with a header, and the change of a mask
POISONED = 4  # a client whose inputs are no numbers, which is left out
WHOLE = (Entry("a", (5, 4), 0), Entry("b", (3,), 20), Entry("c", (1, 30), 23), Entry("d", (40, 10), 53))
TOTAL = 453


def play(world: World, used: Config, stage: int = 0) -> dict[str, Any]:
    """The model, all masks and the rows of a run from the beginning of its masks; by FSDP2, or a stage of ZeRO."""
    shards = world.host.shards
    engine = EngineConfig()
    if shards > 1:
        engine = zero(stage, shards) if stage else EngineConfig(name="fsdp", shards=shards)
    fed = set_up_federation(resolved(dataclasses.replace(used, engine=engine)), world)
    if used is BASE:
        examples = fed.clients.partition[POISONED]
        source = resident(fed.clients.trainer.source)
        source.inputs = source.inputs.float()
        source.inputs[examples] = torch.nan
    assert isinstance(fed.masks, Masks)
    layers = fed.masks.layers
    rows = [begin_masks(fed, QUIET)] + [federated_round(round_, fed) for round_ in range(1, used.rounds + 1)]
    masks = [fed.masks.mask, *(fed.masks.personal(client) for client in range(used.clients.count))]
    return {
        "model": together(fed.view, layers),
        "masks": [together(mask, layers) for mask in masks],
        "by_name": fed.masks.by_name(),
        "rows": rows,
    }


def together(vector: Tensor, layers: Layers) -> list[Tensor]:
    """The whole layers of a vector of which each rank of a host holds a part."""
    return [layers.host.gather(own.float()) for own in layers_of(vector, layers)]


def decide(world: World, are_flat: bool) -> dict[str, Any]:
    """What is decided over given layers, of which each rank has rows or flat slices; many of the values are equal."""
    host = world.host
    entries = [Entry(e.name, (e.numel,) if are_flat else e.shape, e.offset) for e in WHOLE]
    layout = ParameterLayout(tuple(entries))
    cuts = tuple(Cut.of_shard(entry.shape, host.shard, host.shards) for entry in entries)
    layers = Layers.of((WHOLE[0], *WHOLE[2:]), host, ModelShard(host.shard, host.shards, layout, cuts))

    def own(whole: Tensor) -> Tensor:
        return torch.cat([cut.of(view).flatten() for cut, (_, view) in zip(cuts, layout.views(whole))])

    total = sum(cut.numel for cut in cuts)
    cpu = torch.device("cpu")
    weights = own(torch.randint(-9, 10, (TOTAL,), generator=draws(1)) / 8)
    drawn = random_mask(layers, [11, 7, 100], total, draws(2), cpu)
    other = bernoulli_mask(layers, [0.5, 0.5, 0.2], total, draws(3), cpu)
    found = {"drawn": drawn, "bernoulli": other, "largest": largest_mask(weights, layers, [5, 3, 60], drawn)}
    everything = torch.ones(total, dtype=torch.bool)
    for keep in (1, 80, 443):
        found[f"highest {keep}"] = highest(weights, layers, keep, everything, None)
    found["erk"] = highest(weights, layers, 30, drawn, layer_shares("erk", layers.whole))
    grown = {}
    for growth, counts in (("random", "exact"), ("gradient", "faithful")):
        used = SparseTrainingConfig(method="jmwst", growth=growth, counts=counts)
        mask = LocalMask(used, layers, drawn, 118, {1: 0.3}, draws(4), torch.empty(total), growth)
        seen = mask.watch(1, None)
        if seen is not None:
            seen(own(torch.randint(-5, 6, (TOTAL,), generator=draws(5)).float()), weights)
        grown[growth] = mask.prune(weights * mask.factor, 1)
        mask.grow(grown[growth])
        found[f"grown by {growth}"] = mask.mask
    masks = {name: together(mask, layers) for name, mask in found.items()}
    return {"masks": masks, "grown": grown, "mismatch": mask_mismatch([drawn, other], layers)}


def play_all(world: World) -> tuple[dict[bool, Any], dict[str, Any], dict[str, Any]]:
    """What is decided over given values, and the runs of all methods, in one start."""
    decided = {are_flat: decide(world, are_flat) for are_flat in (False, True)}
    played = {name: play(world, used) for name, used in CONFIGS.items()}
    by_zero = {f"{name} by ZeRO {stage}": play(world, CONFIGS[name], stage) for name, stage in STAGES.items()}
    return decided, played | by_zero, play(world, BY_RANK)


def test_hosts_of_two_ranks_have_the_masks_of_one() -> None:
    torch.set_num_threads(1)
    decided, expected, _ = single(play_all)
    found = run_ranks(play_all, 2 * SHARDS, shards=SHARDS)
    for number, (own_decided, played, by_rank) in enumerate(found):
        for decisions in own_decided.values():
            assert decisions["mismatch"] == decided[False]["mismatch"]
            assert decisions["grown"] == decided[False]["grown"]
            for name, layers in decisions["masks"].items():
                assert all(map(torch.equal, layers, decided[False]["masks"][name])), name
        for name, run in played.items():
            for layers, known in zip(run["masks"], expected[name]["masks"]):
                assert all(map(torch.equal, layers, known)), name
            for weights, known in zip(run["model"], expected[name]["model"]):
                torch.testing.assert_close(weights, known, rtol=0, atol=2e-6, msg=name)
            assert run["by_name"].keys() == (expected[name]["by_name"].keys() if number % SHARDS == 0 else set())
            assert all(torch.equal(mask, expected[name]["by_name"][key]) for key, mask in run["by_name"].items())
            for row, known in zip(run["rows"], expected[name]["rows"]):
                assert_same_row(name, row, known)
        assert all(map(torch.equal, by_rank["model"], found[0][2]["model"]))
        assert all(map(torch.equal, by_rank["masks"][0], found[0][2]["masks"][0]))
        assert {row["active_weights"] for row in by_rank["rows"]} == {expected["jmwst"]["rows"][0]["active_weights"]}


ALIKE = (
    *("clients", "rejected_clients", "active_weights", "layer_densities", "mask_mismatch", "stage_one", "kept"),
    *("total", "dense_bytes", "dropped_moments", "dropped_residuals"),
)


def assert_same_row(name: str, row: dict[str, Any], known: dict[str, Any]) -> None:
    """Compare what does not depend on how many ranks encode a payload."""
    for key in ALIKE:
        assert row.get(key) == known.get(key), (name, key)
    assert row.get("train_loss", 0.0) == pytest.approx(known.get("train_loss", 0.0), abs=1e-6)
    budgets_are_alike = name.startswith("spdst") and row.get("round") == 1
    if name.partition(" by ZeRO")[0] in GATHERED and "round" in row and not budgets_are_alike:
        assert values_nbytes(row, SHARDS) == values_nbytes(known, 1), name
    else:
        assert row.get("uplink_bytes") == known.get("uplink_bytes"), name


def values_nbytes(row: dict[str, Any], shards: int) -> int:
    """Count the bytes of values in a round's payloads, without the headers of each rank and the changes of masks."""
    return int(row["uplink_bytes"] - row["mask_bytes"] - HEADER_NBYTES * shards * row["clients"])


def run_of(directory: Path, method: str, shards: int, **changes: Any) -> Config:
    """A run of four rounds whose masks move, on hosts of so many ranks; on one rank in Accelerate."""
    engine = EngineConfig(name="fsdp", shards=shards) if shards > 1 else EngineConfig()
    sparse = dataclasses.replace(BASE.sparse_training, method=method)
    dense = CompressionConfig(sparsifier="dense")
    used = tiny(directory, model=BASE.model, compression=dense, sparse_training=sparse, engine=engine, **changes)
    return dataclasses.replace(used, rounds=4, seed=BASE.seed)


def as_after_round_2(directory: Path) -> Path:
    """Copy a finished run without its last checkpoint."""
    source = directory.with_name(f"{directory.name} after round 2")
    shutil.copytree(directory, source)
    shutil.rmtree(source / "checkpoints" / "round-00000004")
    return source


def on_two_ranks(world: World, directory: Path) -> None:
    """Straight runs, killed ones, and those that go on from one rank, in one start."""
    for method in ("jmwst", "nst"):
        start_rank(world, run_of(directory / f"{method} straight", method, SHARDS))
        start_rank(world, run_of(directory / f"{method} killed", method, SHARDS), kill_in_round=4)
        start_rank(world, run_of(directory / f"{method} killed", method, SHARDS))
        other = CheckpointConfig(every=2, resume=str(directory / f"{method} alone after round 2"))
        start_rank(world, run_of(directory / f"{method} divided", method, SHARDS, checkpoint=other))


def test_masks_move_with_checkpoints_between_hosts_of_one_and_two_ranks(tmp_path: Path) -> None:
    for method in ("jmwst", "nst"):
        start(run_of(tmp_path / f"{method} alone", method, 1))
        as_after_round_2(tmp_path / f"{method} alone")
    run_ranks(on_two_ranks, SHARDS, tmp_path, shards=SHARDS)
    for method in ("jmwst", "nst"):
        assert_same_run(tmp_path / f"{method} straight", tmp_path / f"{method} killed")
        other = CheckpointConfig(every=2, resume=str(as_after_round_2(tmp_path / f"{method} straight")))
        start(run_of(tmp_path / f"{method} joined", method, 1, checkpoint=other))
        model, masks = held(tmp_path / f"{method} alone")
        for kind in ("straight", "divided", "joined"):
            own_model, own_masks = held(tmp_path / f"{method} {kind}")
            for name, weight in own_model.items():
                torch.testing.assert_close(weight, model[name], rtol=0, atol=2e-6, msg=f"{method} {kind}: {name}")
            assert torch.equal(own_masks["mask"], masks["mask"])
            assert own_masks["personal"].keys() == masks["personal"].keys()
            assert bool(masks["personal"]) == (method == "nst")
            for client, bits in masks["personal"].items():
                assert torch.equal(own_masks["personal"][client], bits)
            assert own_masks["seen"] == masks["seen"]
    exported = [load_file(tmp_path / f"jmwst {kind}" / "model.masks.safetensors") for kind in ("alone", "straight")]
    assert exported[0].keys() == exported[1].keys()
    assert all(torch.equal(mask, exported[1][name]) for name, mask in exported[0].items())


def held(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a run's final model, and the masks of its last checkpoint as one rank takes them over."""
    folder = directory / "checkpoints" / "round-00000004"
    layout = torch.load(folder / "rank-00000.pt", weights_only=True)["layout"]
    return load_file(directory / "model.safetensors"), load_set(folder, layout, None, 0, 1).server["masks"]


def test_bools_and_bits_of_any_rows_become_those_of_others() -> None:
    layout = ParameterLayout(WHOLE)
    mask = torch.rand(TOTAL, generator=draws()) < 0.3

    def state(shards: int, shard: int) -> dict[str, Any]:
        cuts = tuple(Cut.of_shard(entry.shape, shard, shards) for entry in WHOLE)
        own = torch.cat([cut.of(view).flatten() for cut, (_, view) in zip(cuts, layout.views(mask))])
        masks = {"mask": own, "personal": {7: set_bits(own.nonzero().squeeze(1), own.numel())}, "changes": [3]}
        held = described(ModelShard(shard, shards, layout, cuts)) if shards > 1 else {}
        return {"server": {"masks": masks}, "clients": {}, **held}

    for saved, taken in ((2, 1), (1, 3), (3, 2)):
        for shard in range(taken):
            cuts = tuple(Cut.of_shard(entry.shape, shard, taken) for entry in WHOLE)
            wanted = ModelShard(shard, taken, layout, cuts) if taken > 1 else None
            (found,) = as_held([state(saved, own) for own in range(saved)], wanted, layout.describe())
            masks, expected = found["server"]["masks"], state(taken, shard)["server"]["masks"]
            assert torch.equal(masks["mask"], expected["mask"])
            assert torch.equal(masks["personal"][7], expected["personal"][7])
            assert masks["changes"] == [3]


class OneOfOne:
    """A model that the only rank of a host has divided, in float32."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = torch.cat([p.detach().flatten() for p in module.parameters()])
        self.buffers = torch.empty(0)

    def load(self, parameters: Tensor, buffers: Tensor) -> None: ...

    def gradient_of(self, batch: Any) -> Any: ...

    def flow_of(self, inputs: Tensor, scale: float) -> Tensor:
        positive = [p.abs().detach().requires_grad_() for p in self.module.parameters()]
        names = [name for name, _ in self.module.named_parameters()]
        found = torch.func.functional_call(self.module, dict(zip(names, positive)), inputs)
        return torch.cat([part.flatten() for part in torch.autograd.grad(found.sum() * scale, positive)])


@pytest.mark.parametrize("depth", [3, 120])
def test_flow_in_float32_reaches_as_deep_as_in_float64(depth: int) -> None:
    torch.manual_seed(0)
    first = nn.Linear(40, 40, bias=False)
    module = nn.Sequential(first, *(nn.Linear(40, 40, bias=False) for _ in range(depth - 1)))
    batches = [(torch.zeros(2, 40), torch.zeros(2))]
    expected = torch.cat([part.flatten() for part in flow(module, list(module.parameters()), batches, CLASSIFICATION)])
    found = divided.flow(OneOfOne(module), batches, Host())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    with torch.no_grad():
        first.weight.mul_(torch.inf)
    with pytest.raises(ValueError, match=r"^pruning\.criterion: the scores of this model leave the range of float32"):
        divided.flow(OneOfOne(module), batches, Host())


def test_what_needs_derivatives_of_gradients_is_refused() -> None:
    message = r"^pruning\.criterion: needs the Hessian, and gradients of a divided model cannot be differentiated again"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(pruned("grasp"), engine=EngineConfig(name="fsdp", shards=2))
    dataclasses.replace(pruned("grasp"), engine=EngineConfig())
