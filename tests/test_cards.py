"""TensorBoard's own plugins read the cards of a run: text, hyperparameters and layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig
from flare_dist.records.cards import card, cards, end_card, hyperparameters, layout
from flare_dist.records.tensorboard import EventWriter

CONFIG = Config(rounds=7, output_dir="runs/mine", data=DataConfig(name="mnist"))


def events_of(directory: Path) -> Any:
    events = EventWriter(directory)
    for summary in [*cards(CONFIG, ("iou", "max")), end_card()]:
        events.add_summary(summary)
    events.close()
    return EventAccumulator(str(directory)).Reload()


def plugin_data(events: Any, tag: str) -> HParamsPluginData:
    content = events.SummaryMetadata(tag).plugin_data.content
    return HParamsPluginData.FromString(content)


def test_hyperparameters_are_read_by_their_plugin(tmp_path: Path) -> None:
    events = events_of(tmp_path)
    start = plugin_data(events, metadata.SESSION_START_INFO_TAG).session_start_info
    assert start.hparams["rounds"].number_value == 7
    assert start.hparams["data.name"].string_value == "mnist"
    assert start.hparams["gradients.find_unused_parameters"].string_value == "false"
    assert "data.image_range" not in start.hparams
    experiment = plugin_data(events, metadata.EXPERIMENT_TAG).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["iou/test", "loss/test"]
    assert plugin_data(events, metadata.SESSION_END_INFO_TAG).session_end_info.status == 1  # success


def test_places_are_no_hyperparameters() -> None:
    values = hyperparameters(CONFIG)
    assert values["clients.lr"] == CONFIG.clients.lr
    assert values["compression.error_feedback"] == CONFIG.compression.error_feedback
    assert values["sparse_training.exclude"] == "[]"
    assert not values.keys() & {"output_dir", "data.root", "tracking", "checkpoint.every"}


def test_the_text_card_names_what_differs_and_all_keys(tmp_path: Path) -> None:
    text = events_of(tmp_path).Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == card(CONFIG)
    differing, everything = text.split("**All keys**")
    assert re.findall(r"^\| ([\w.]+) \| (.*) \|$", differing, re.MULTILINE)[1:] == [
        ("rounds", "7"),
        ("output_dir", "runs/mine"),
        ("data.name", "mnist"),
    ]
    assert "    clients:\n      num: " in everything


def test_the_layout_groups_curves_of_a_run(tmp_path: Path) -> None:
    content = events_of(tmp_path).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    shown = layout_pb2.Layout.FromString(content)
    patterns = {chart.title: list(chart.multiline.tag) for category in shown.category for chart in category.chart}
    for title, name in {
        "iou": "iou/test",
        "loss": "loss/train",
        "bytes so far": "cumulative_bytes/up",
        "bytes of a round": "bytes/uplink",
        "compression against dense": "compression/total",
        "seconds of a round": "seconds/round",
        "learning rates": "lr/clients",
    }.items():
        assert any(re.match(pattern, name) for pattern in patterns[title]), title
    assert "iou_by_group" not in patterns
    assert layout(("iou", "max"), by_group=True)["Result"]["iou_by_group"] == ["Multiline", ["^iou_by_group/"]]
    assert not any(re.match(pattern, "seconds/elapsed") for pattern in patterns["seconds of a round"])
