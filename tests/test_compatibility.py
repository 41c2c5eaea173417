"""What goes with what: every combination of options is taken, or refused in one line that begins with a key."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flare_dist import cli
from flare_dist.cautions import CAUTIONS
from flare_dist.cli.compatibility import page
from flare_dist.cli.training import train_parser
from flare_dist.compatibility import EXCLUSIONS
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.config.load import config_parser
from flare_dist.exclusion import Exclusion, messages, refuse
from flare_dist.hook.state import SparseHookState
from tests.helpers.masks import BASE

# Options as somebody sets them, each with what it needs by itself.
CHOICES: list[tuple[str, str, Any, dict[str, Any]]] = [
    *((f"mode={mode}", "mode", mode, {}) for mode in ("gradient", "centralised")),
    ("few clients", "clients.per_round", 4, {}),
    ("local steps", "clients.local_steps", 3, {}),
    ("smallest batch", "clients.smallest_batch", 2, {}),
    ("adam", "clients.optimizer", "adam", {"clients.lr": 0.001}),
    ("muon", "clients.optimizer", "muon", {}),
    ("momentum", "clients.momentum", 0.9, {}),
    ("kept optimizers", "clients.keep_optimizer", True, {"clients.optimizer": "adamw"}),
    ("weight decay", "clients.weight_decay", 0.01, {}),
    ("clipping", "clients.gradient_clipping", 1.0, {}),
    ("uniform", "clients.weighting", "uniform", {}),
    ("step ahead", "clients.step_ahead", 0.5, {}),
    ("one batch", "clients.together", "always", {}),
    ("files", "clients.state_dir", "states", {}),
    ("fedprox", "clients.objective", "fedprox", {}),
    ("feddyn", "clients.objective", "feddyn", {"clients.weighting": "uniform"}),
    ("scaffold", "clients.objective", "scaffold", {}),
    ("flare", "clients.objective", "flare", {}),
    ("conserving flare", "clients.objective", "flare", {"clients.flare.conserve": True}),
    *((name, "compression.sparsifier", name, {}) for name in ("dense", "randk", "threshold", "auto")),
    ("density 1", "compression.density", 1.0, {}),
    *((f"scope {name}", "compression.scope", name, {}) for name in ("block", "row", "global")),
    ("small tensors whole", "compression.dense_below", 100, {}),
    *((name, "compression.error_feedback", name, {}) for name in ("dgc", "ef21")),
    ("no error feedback", "compression.error_feedback", "none", {}),
    ("decay", "compression.residual_decay", 0.95, {}),
    *((name, "compression.index_codec", name, {}) for name in ("packed", "bitmap")),
    *((name, "compression.value_codec", name, {}) for name in ("fp16", "int8", "sign")),
    ("value blocks", "compression.value_block", 64, {"compression.value_codec": "4bit"}),
    *((f"downlink {name}", "compression.downlink", name, {}) for name in ("fp16", "changed", "topk")),
    ("warm-up", "compression.warmup", (0.25, 0.06), {}),
    *((f"hook {name}", "gradients.hook", name, {"mode": "gradient"}) for name in ("fp16", "powersgd")),
    *((f"server {name}", "server.optimizer", name, {}) for name in ("fedavgm", "fedadam", "torch:NAdam")),
    ("server momentum", "server.momentum", 0.9, {}),
    ("nesterov", "server.nesterov", True, {"server.momentum": 0.9}),
    ("fednova", "server.aggregator", "fednova", {}),
    *((name, "sparse_training.method", name, {})
      for name in ("pdst", "nst", "spdst", "jmwst", "feddst", "pruned", "prunefl")),
    ("budgets", "sparse_training.hetero", ((0.5, 0.5), (0.5, 1.0)), {"sparse_training.method": "spdst"}),
    ("server's data", "pruning.data", "server",
     {"sparse_training.method": "pruned", "data.validation": 0.1}),
    *((name, "engine.mixed_precision", name, {}) for name in ("bf16",)),
    ("half", "engine.mixed_precision", "fp16", {}),
    ("cpu", "engine.device", "cpu", {}),
    ("accumulation", "engine.gradient_accumulation_steps", 2, {}),
    ("deepspeed", "engine.name", "deepspeed", {}),
    ("dirichlet", "data.partition", "dirichlet", {}),
    ("held out", "data.validation", 0.1, {}),
    ("augment", "data.augment", "crop", {}),
    ("GroupNorm", "model.norm", "group", {}),
]  # fmt: skip
OPTIONS = {name: {key: value} | also for name, key, value, also in CHOICES}
KEYS = set(config_parser().hints)
ONE_LINE = re.compile(r"[a-z_]+(\.[a-z0-9_]+)*: .+, got .+; .+")


hints_of = functools.cache(get_type_hints)


def configuration(keys: dict[str, Any], kind: Any = Config, prefix: str = "") -> Any:
    """Build a configuration of dotted keys; its dataclasses raise ValueError."""
    values = {}
    for name, hint in hints_of(kind).items():
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            values[name] = configuration(keys, hint, f"{key}.")
        elif key in keys:
            values[name] = keys[key]
    return kind(**values)


def joined(names: tuple[str, ...]) -> dict[str, Any] | None:
    """Join options; None if they give one key two values."""
    keys: dict[str, Any] = {}
    for name in names:
        if any(keys.get(key, value) != value for key, value in OPTIONS[name].items()):
            return None
        keys |= OPTIONS[name]
    return keys


def refusal(keys: dict[str, Any]) -> str | None:
    """Return the error of a configuration; None if it is taken."""
    try:
        configuration(keys)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_by_itself_is_taken(name: str) -> None:
    assert refusal(OPTIONS[name]) is None


def test_pairs_are_taken_or_refused_in_one_line_that_begins_with_a_key() -> None:
    pairs = [keys for pair in itertools.combinations(OPTIONS, 2) if (keys := joined(pair)) is not None]
    refusals = [said for keys in pairs if (said := refusal(keys)) is not None]
    for said in refusals:
        assert ONE_LINE.fullmatch(said), said
        assert said.split(": ")[0] in KEYS
    assert len(refusals) / len(pairs) < 0.085  # 186 of 2,270; a new restriction is not to be had for nothing


@settings(derandomize=True, max_examples=300, deadline=None, database=None)
@given(st.sets(st.sampled_from(sorted(OPTIONS)), min_size=3, max_size=8))
def test_so_are_larger_combinations(names: set[str]) -> None:
    keys = joined(tuple(sorted(names)))
    said = refusal(keys) if keys is not None else None
    assert said is None or (ONE_LINE.fullmatch(said) and said.split(": ")[0] in KEYS), said


@pytest.mark.parametrize("row", [*EXCLUSIONS, *CAUTIONS], ids=lambda row: row.condition)
def test_rows_name_keys_and_speak_in_one_line(row: Exclusion) -> None:
    facts = {
        "class_of",
        "is_dataset",
        "zero_stage",
        "sync_batch_norm",
        "weights",
        "local_steps",
        "device",
        "test_groups",
        "ranks",
    }
    assert row.keys[0] in KEYS
    assert set(row.keys) <= KEYS | facts
    given = vars(Config()) | dict.fromkeys(facts & set(row.keys), 3)
    assert ONE_LINE.fullmatch(row.message(given)), row.message(given)


def test_no_row_is_about_the_defaults() -> None:
    data = {"is_text": False, "is_dataset": False, "class_of": "example"}
    facts = {"by_hook": False, "zero_stage": 0, "device": "cpu"} | data
    given = vars(Config()) | facts | {"ranks": 1, "local_steps": 3, "sync_batch_norm": None, "weights": "float32"}
    refuse(EXCLUSIONS, **given)
    assert not list(messages(CAUTIONS, **given))
    for row in (*EXCLUSIONS, *CAUTIONS):
        assert set(row.reads) <= given.keys()


def test_a_hook_refuses_what_the_mode_refuses() -> None:
    for settings_ in ({"scope": "global"}, {"dense_below": 5, "scope": "block"}, {"warmup": (0.5,), "density": 1.0}):
        said = refusal({f"compression.{key}": value for key, value in settings_.items()} | {"mode": "gradient"})
        with pytest.raises(ValueError, match=f"^{re.escape(str(said))}$"):
            SparseHookState(nn.Linear(2, 2), **settings_)


def test_what_another_hook_ignores_is_not_refused() -> None:
    fp16 = {"mode": "gradient", "gradients.hook": "fp16"}
    assert refusal(fp16 | {"compression.scope": "global"}) is None
    assert refusal(fp16 | {"gradients.hook": "sparse", "compression.scope": "global"}) is not None


def test_the_page_of_the_documentation_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compatibility"]) == 0
    printed = capsys.readouterr().out
    assert printed == page()
    assert (Path(__file__).parent.parent / "docs" / "reference" / "compatibility.md").read_text() == printed, (
        "run flare-dist compatibility > docs/reference/compatibility.md"
    )
    for row in (*EXCLUSIONS, *CAUTIONS):
        assert printed.count(f"| {row.condition} |") == 1


def test_help_names_the_page() -> None:
    assert "flare-dist compatibility" in " ".join(train_parser().format_help().split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mode": "gradient"},
            "sparse_training.method: only federated clients train with masks, got jmwst with mode=gradient",
        ),
        ({"compression": CompressionConfig(error_feedback="ef21")}, "ef21's estimates do not follow masks"),
        (
            {"compression": CompressionConfig(sparsifier="dense", downlink="changed")},
            "compression.downlink: active weights of a mask are sent in float32, got changed with sparse_"
            "training.method=jmwst",
        ),
    ],
)
def test_what_does_not_go_with_masks_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(BASE, **settings)
    assert "\n" not in str(error.value)
