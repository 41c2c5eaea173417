"""Which key of metrics.jsonl has which curve."""

from __future__ import annotations

import pytest

from flare_dist.records.tensorboard import tag


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("test_accuracy", "accuracy/test"),
        ("validation_loss", "loss/validation"),
        ("uplink_bytes", "bytes/uplink"),
        ("waiting_seconds", "seconds/waiting"),
        ("slowest_client_seconds", "seconds/slowest_client"),
        ("rejected_clients", "clients/rejected_clients"),
        ("round", None),
        ("kept", None),
    ],
)
def test_keys_have_these_tags(key: str, expected: str | None) -> None:
    assert tag(key) == expected
