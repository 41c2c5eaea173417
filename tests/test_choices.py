"""Sparsifiers, codecs and error feedback of the user's do what built-in ones do, or are refused before a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.config import CompressionConfig
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.named import WrongResultError
from tests.helpers import own
from tests.helpers.hook import flat, net, step
from tests.ranks import run_ranks

OWN = "tests.helpers.own"
LAYOUT = ParameterLayout((Entry("a", (40, 30), 0), Entry("b", (7,), 1200)))
TWINS: dict[str, Any] = {
    "sparsifier": f"{OWN}:largest",
    "index_codec": f"{OWN}:words",
    "value_codec": f"{OWN}:halves",
    "error_feedback": f"{OWN}:remember",
}
OURS: dict[str, Any] = {"index_codec": "int32", "value_codec": "fp16"}


@pytest.mark.parametrize("scope", ["tensor", "block", "global"])
def test_twins_of_built_in_ones_give_the_same_payloads(scope: str) -> None:
    delta = torch.randn(LAYOUT.total, generator=torch.Generator().manual_seed(0))
    sent = []
    for settings in (OURS, TWINS):
        compressor = Compressor(CompressionConfig(density=0.03, scope=scope, block=256, **settings), LAYOUT, 0)
        memory = {name: torch.zeros(LAYOUT.total) for name in compressor.state_names}
        payloads = [compressor.compress(round_, 0, delta, memory) for round_ in (1, 2)]
        sent.append(([payload.data for payload in payloads], memory))  # type: ignore[union-attr]
    (ours, memory), (users, users_memory) = sent
    assert all(map(torch.equal, ours, users))
    assert torch.equal(memory["residual"], users_memory["residual"])


def trained(world: World, settings: dict[str, Any]) -> tuple[Tensor, int]:
    model = net()
    ddp = DistributedDataParallel(model)
    state = flare_dist.attach(ddp, density=0.05, **settings)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for number in range(5):
        step(ddp, optimizer, world.rank, number)
    return flat(model), state.wire_bytes


def test_attach_takes_names_and_callables() -> None:
    callables = {
        "sparsifier": own.largest,
        "index_codec": own.words,
        "value_codec": own.halves,
        "error_feedback": own.remember,
    }
    expected = run_ranks(trained, 2, OURS)
    for settings in (TWINS, callables):
        for (parameters, nbytes), (same, same_nbytes) in zip(run_ranks(trained, 2, settings), expected):
            assert torch.equal(parameters, same)
            assert nbytes == same_nbytes


def wrong_number(world: World) -> str:
    with pytest.raises(WrongResultError) as error:
        trained(world, {"sparsifier": own.one_less})
    return str(error.value)


def test_in_steps_a_sparsifier_must_return_exactly_k() -> None:
    for said in run_ranks(wrong_number, 2):
        assert said.startswith(
            "compression.sparsifier: tests.helpers.own:one_less must return exactly k positions in steps"
        )


def test_a_random_sparsifier_draws_for_each_tensor_and_rank() -> None:
    """Whatever DDP's buckets are, which its generator must not follow."""
    (one, _), (other, _) = run_ranks(trained, 2, {"sparsifier": own.drawn})
    assert torch.equal(one, other)
    settings = {"sparsifier": "randk"}
    assert torch.equal(run_ranks(trained, 2, settings)[0][0], one)  # the same draws


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsifier": "topkk"}, r"compression\.sparsifier: unknown choice, got 'topkk'; did you mean topk\?"),
        ({"sparsifier": "topk", "sparsifier_options": {"power": 1}},
         r"compression\.sparsifier_options\.power: topk takes no options; leave it out"),
        ({"sparsifier": "threshold", "sparsifier_options": {"threshold": 0.5}, "threshold": 0.1},
         r"compression\.sparsifier_options\.threshold: threshold takes no options; leave it out"),
        ({"value_codec": "fp16", "value_codec_options": {"bits": 1}},
         r"compression\.value_codec_options\.bits: fp16 takes no such option, got 1; leave it out \(fp16 takes"),
        ({"index_codec": "auto", "index_codec_options": {"n": 1}}, r"compression\.index_codec_options\.n: auto takes"),
        ({"sparsifier": f"{OWN}:broken_positions"}, r"compression\.sparsifier_options\.kind: .* needs it, got nothing"),
        ({"value_codec": f"{OWN}:words"}, r"compression\.value_codec: tests\.helpers\.own:words must return a "
         r"flare_dist\.ValueCodec, got IndexCodec; for example flare_dist\.ValueCodec\("),
        ({"error_feedback": f"{OWN}:forgetful"}, r"compression\.error_feedback: .*rule must leave `state` as it is"),
        ({"error_feedback": f"{OWN}:remember", "error_feedback_options": {"names": ["velocity"]}},
         r"compression\.error_feedback: .*remember: rule fails: KeyError: 'residual'"),
    ],
)  # fmt: skip
def test_wrong_choices_are_told_with_the_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        CompressionConfig(**settings)


@pytest.mark.parametrize(
    ("key", "name", "kind", "message"),
    [
        ("index_codec", "broken_indices", "length", r"nbytes\(1, 1\) must be the length of what encode gives, got 5"),
        ("index_codec", "broken_indices", "bytes", r"encode must give bytes, uint8 \[nbytes\(1, 1\)\], got torch"),
        ("index_codec", "broken_indices", "lossy", r"decode must give the int64 positions that were encoded"),
        ("index_codec", "broken_indices", "growing", r"nbytes must not be larger for fewer positions, got 999"),
        ("index_codec", "broken_indices", "failing", r"decode fails: KeyError: 'k' \(.*own\.py, line \d+\)"),
        ("value_codec", "broken_values", "length", r"nbytes\(5, 2\) must be the length of what encode gives, got 15"),
        ("value_codec", "broken_values", "shape", r"decode must give float32 \[5\] for 5 values, got torch\.f"),
        ("value_codec", "broken_values", "offset", r".*must come back finite, and zeros as zeros, got \[1\.0, 1\.0"),
        ("sparsifier", "broken_positions", "many", r"must return at most k=5 ascending positions of 20 entries, int64"),
        ("sparsifier", "broken_positions", "mask", r"must return at most k=5 .*, got torch\.bool \[20\]; for example"),
        ("sparsifier", "broken_positions", "list", r"must return at most k=5 .*, got list; for example"),
        ("sparsifier", "broken_positions", "order", r"must return at most k=5 ascending .*, got \[\d+, .* first"),
        ("sparsifier", "broken_positions", "int32", r"must return at most k=5 .*, got torch\.int32 \[5\]; for example"),
    ],
)  # fmt: skip
def test_a_broken_contract_is_told_before_a_run(key: str, name: str, kind: str, message: str) -> None:
    settings: dict[str, Any] = {key: f"{OWN}:{name}", f"{key}_options": {"kind": kind}}
    with pytest.raises(ValueError, match=rf"^compression\.{key}: tests\.helpers\.own:{name}:? {message}"):
        CompressionConfig(**settings)
