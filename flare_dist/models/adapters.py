"""Adapters of PEFT around a pretrained model, and what of such a model is its frozen base.

LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685) adds B A
to frozen matrices. The mean of B times the mean of A is not the mean of B A, unless A stays as it was drawn: FFA-LoRA
(Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning", https://arxiv.org/abs/2403.12313).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from flare_dist.errors import not_installed, reason_in_code
from flare_dist.named import Options

KEY = "model.options.lora"
DRAWN = ("lora_A", "lora_embedding_B")  # the factors that PEFT draws at random; the others begin with zeros
ADAPTERS = ("lora_", "modules_to_save", "original_module")  # how PEFT's names of what is not the base begin


def with_lora(model: nn.Module, lora: Options, task: str | None) -> nn.Module:
    """Freeze a model and add adapters, all or half of whose factors are trained."""
    try:
        import peft
    except ImportError as error:
        raise not_installed(KEY, "peft", "'flare_dist[hf]'") from error
    if not isinstance(lora, Mapping):
        raise ValueError(f"{KEY}: must be arguments of peft.LoraConfig, got {lora!r}; write for instance {{r: 8}}")
    settings = dict(lora)
    freezes = settings.pop("freeze_a", False)
    _check_options(peft, settings)
    try:
        with warnings.catch_warnings():
            # PEFT asks for it by a name that transformers 5 warns of; nobody who trains can do anything about it.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted: nn.Module = peft.get_peft_model(model, peft.LoraConfig(**({"task_type": task} | settings)))
    except Exception as error:  # whatever it refuses
        raise ValueError(f"{KEY}: PEFT refuses {settings}: {reason_in_code(error)}") from error
    if freezes:
        for name, value in adapted.named_parameters():
            if set(DRAWN) & set(name.split(".")):
                value.requires_grad_(False)
    return adapted


def _check_options(peft: Any, settings: Options) -> None:
    """Raise ValueError that names an option which LoraConfig does not have."""
    known = [field.name for field in dataclasses.fields(peft.LoraConfig) if field.init]
    for option, value in settings.items():
        if option not in known:
            similar = get_close_matches(option, [*known, "freeze_a"], 1)
            remedy = f"did you mean {similar[0]}?" if similar else "leave it out"
            raise ValueError(f"{KEY}.{option}: LoraConfig takes no such option, got {value!r}; {remedy}")


def base_of_peft(model: nn.Module) -> Iterable[str]:
    """Name the parameters of a model of the user's that are no adapters; none if it has no adapters of PEFT."""
    if not any("peft_config" in vars(part) for part in model.modules()):
        return ()
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return [name for name in names if not any(part.startswith(ADAPTERS) for part in name.split("."))]
