"""What is given to the callbacks is checked before there is a model, and against the trainer's own settings."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import flare_dist
from flare_dist.engines.callback_settings import Advice, check_settings, check_trainer
from tests.helpers.hook import net

ADAM = {"density": 0.01, "preconditioner": "adam"}
ADVICE = Advice("optim='sgd'", "max_grad_norm=0", "Arguments({})")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"density": 2}, ValueError, "compression.density"),
        ({"preconditioner": "adam", "betas": (0.9, 0.99)}, ValueError, "gradients.betas"),
        ({"error_feedback": "ef21"}, ValueError, "error_feedback"),
        ({"densty": 0.1}, TypeError, "densty"),
        ({"optimizer": []}, ValueError, r"^Callback\.optimizer: the trainer's own .*, got list; leave it out$"),
        ({"scaler": 1.0}, ValueError, r"^Callback\.scaler: the trainer's own .*, got float; leave it out$"),
        ({"process_group": None}, ValueError, r"^Callback\.process_group: .*, got NoneType; leave it out$"),
        ({"world_of_one": "bad"}, ValueError, r"^Callback\.world_of_one: .*, got 'bad'; choose from raise, warn$"),
    ],
)
def test_wrong_settings_are_refused_before_there_is_a_model(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_settings("Callback", settings)


def test_settings_of_attach_pass() -> None:
    check_settings("Callback", {**ADAM, "world_of_one": "warn", "adapt": True, "warmup": [0.25]})


@pytest.mark.parametrize(
    ("settings", "make", "clips", "words"),
    [
        (ADAM, torch.optim.AdamW, 0, r"AdamW would scale once more; write Arguments\(optim='sgd'\) \(docs"),
        (ADAM, torch.optim.SGD, 1.0, r"clipping to norm 1 would shrink.*; write Arguments\(max_grad_norm=0\) \(docs"),
        (ADAM, torch.optim.Adam, 0.5, r"Adam would.* and clipping.*Arguments\(optim='sgd', max_grad_norm=0\)"),
        (ADAM, torch.optim.SGD, None, None),
        (ADAM, torch.optim.SGD, 0, None),
        ({"density": 0.01}, torch.optim.AdamW, 1.0, None),
    ],
)
def test_updates_are_neither_scaled_nor_clipped(
    settings: dict[str, Any], make: Any, clips: float | None, words: str | None
) -> None:
    model = net()
    optimizer = make(model.parameters(), lr=0.1)
    if words is None:
        check_trainer("Callback", settings, optimizer, model, clips, ADVICE)
        return
    with pytest.raises(ValueError, match=r"^Callback: preconditioner=adam returns updates, which " + words):
        check_trainer("Callback", settings, [optimizer], model, clips, ADVICE)


def test_a_gradient_is_clipped_once() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    settings = {"density": 0.01, "clip_norm": 0.5}
    check_trainer("Callback", settings, optimizer, model, 0, ADVICE)
    with pytest.raises(
        ValueError, match=r"^Callback\.clip_norm: .* got 0\.5 here and 1 there; write Arguments\(max_gr"
    ):
        check_trainer("Callback", settings, optimizer, model, 1.0, ADVICE)


@pytest.mark.parametrize(
    ("name", "module", "libraries", "words"),
    [
        ("HookCallback", "transformers_hook", ["transformers"], r"transformers is not installed.*'flare_dist\[hf\]'"),
        (
            "LightningHookCallback",
            "lightning_hook",
            ["lightning", "pytorch_lightning"],
            r"lightning is.* install 'flare_dist\[lightning\]'$",
        ),
    ],
)
def test_a_library_that_is_not_installed_is_named_when_its_callback_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, libraries: list[str], words: str
) -> None:
    for library in libraries:
        monkeypatch.setitem(sys.modules, library, None)
    for imported in ("lightning.pytorch", f"flare_dist.engines.{module}"):
        monkeypatch.delitem(sys.modules, imported, raising=False)
    assert name not in flare_dist.__all__
    with pytest.raises(ModuleNotFoundError, match=rf"^{name}: {words}"):
        getattr(flare_dist, name)
