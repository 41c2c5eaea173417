"""Cards of TensorBoard beside the curves of a run: configuration, hyperparameters, and which curves go together.

The protocol buffers are made by PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flare_dist.config.config import Config
from flare_dist.config.saved import as_dict, differing_keys, dotted, to_yaml
from flare_dist.records.curves import BY_GROUP, tag
from flare_dist.records.resume import FREE_KEYS
from flare_dist.tasks.task import Best

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary


def cards(config: Config, best: Best) -> list[Summary]:
    """Make what stands at the beginning of an event file: text card, hyperparameters and layout."""
    from torch.utils.tensorboard import summary  # a third of a second, which commands without a run save

    metrics = [str(tag(f"test_{name}")) for name in dict.fromkeys((best[0], "loss"))]
    experiment, start, _ = summary.hparams(hyperparameters(config), dict.fromkeys(metrics, 0.0))
    return [
        summary.text("configuration", card(config)),
        experiment,
        start,
        summary.custom_scalars(layout(best, config.evaluation.by_group)),
    ]


def end_card() -> Summary:
    """Make what stands at the end of a finished run: that it has finished."""
    from torch.utils.tensorboard import summary

    return summary.hparams({}, {})[2]


def hyperparameters(config: Config) -> dict[str, Any]:
    """List the keys on which the parameters depend, as numbers and texts; keys without a value are left out."""
    values = {key: value for key, value in dotted(as_dict(config)).items() if key not in FREE_KEYS}
    is_number = {key: isinstance(value, (int, float)) and not isinstance(value, bool) for key, value in values.items()}
    return {key: value if is_number[key] else _text(value) for key, value in values.items() if value is not None}


def card(config: Config) -> str:
    """Write the configuration as Markdown: the keys that differ from the defaults, then every key."""
    values = dotted(as_dict(config))
    changed = [key for key in differing_keys(dotted(as_dict(Config())), values) if key in values]
    rows = [f"| {key} | {_cell(values[key])} |" for key in changed]
    table = ["| key | value |", "|---|---|", *rows]
    return "\n".join(["**Differs from the defaults**", "", *table, "", "**All keys**", "", *_indented(to_yaml(config))])


def layout(best: Best, by_group: bool = False) -> dict[str, dict[str, list[Any]]]:
    """Name the charts of the page Custom Scalars, each with patterns of the tags that share it."""
    metrics = [*dict.fromkeys((best[0], "loss")), *([f"{best[0]}{BY_GROUP}"] if by_group else [])]
    return {
        "Result": {name: ["Multiline", [rf"^{name}/"]] for name in metrics},
        "Communication": {
            "bytes so far": ["Multiline", [r"^cumulative_bytes/"]],
            "bytes of a round": ["Multiline", [r"^bytes/"]],
            "compression against dense": ["Multiline", [r"^compression/"]],
        },
        "Time": {"seconds of a round": ["Multiline", [r"^seconds/(?!elapsed)"]]},
        "Training": {"learning rates": ["Multiline", [r"^lr/"]]},
    }


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(value: Any) -> str:
    return _text(value).replace("|", r"\|").replace("\n", " ")


def _indented(text: str) -> list[str]:
    """Indent lines, which Markdown shows as they are."""
    return [f"    {line}" for line in text.splitlines()]
