"""Models of Hugging Face, whole or with adapters: `model.name: hf:DIR_OR_NAME` (pip install 'flare_dist[hf]').

LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685) adds B A
to frozen matrices. The mean of B times the mean of A is not the mean of B A, unless A stays as it was drawn: FFA-LoRA
(Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning", https://arxiv.org/abs/2403.12313).
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flare_dist.errors import check_choice, not_installed, reason_in_code
from flare_dist.fixed import fix_base
from flare_dist.named import Options
from flare_dist.tasks.task import Shape, Task
from flare_dist.vocabulary import Vocabulary

PREFIX = "hf:"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What a model is for: its class among transformers' Auto classes, and what PEFT calls it.
CAUSAL = "AutoModelForCausalLM"
SEQUENCES = "AutoModelForSequenceClassification"
IMAGES = "AutoModelForImageClassification"
PEFT_TASKS = {CAUSAL: "CAUSAL_LM", SEQUENCES: "SEQ_CLS"}
DRAWN = ("lora_A", "lora_embedding_B")  # the factors that PEFT draws at random; the others begin with zeros


def located(name: str) -> str:
    """Make the folder in a model's name absolute, so that a run can be read from any directory."""
    own = Path(name.removeprefix(PREFIX)).expanduser()
    return f"{PREFIX}{own.absolute()}" if name.startswith(PREFIX) and own.is_dir() else name


def hugging_face(
    source: str,
    input_shape: Shape | None,
    num_classes: int | None,
    vocabulary: Vocabulary | None = None,
    task: Task | None = None,
    lora: Options | None = None,
    dtype: str = "fp32",
    auto_class: str | None = None,
) -> nn.Module:
    """Load a pretrained model from a folder, or by its name on the hub, for the outputs that the task needs.

    With `lora` (arguments of peft.LoraConfig, and freeze_a) its weights are frozen, and adapters are trained. `dtype`
    is that of the weights: fp32 or bf16. `auto_class` names another class of transformers than the task suggests.
    ValueError names the key under model that is wrong.
    """
    check_choice("model.options.dtype", dtype, DTYPES)
    kind = auto_class or _class_for(task, input_shape)
    model, drawn = _loaded(source, kind, dtype, num_classes, vocabulary)
    _check_vocabulary(model, vocabulary)
    main_input = model.main_input_name
    if lora is not None:
        base = {id(value) for name, value in model.named_parameters() if name not in drawn}
        model = _with_lora(model, lora, PEFT_TASKS.get(kind))
        fix_base(model, [name for name, value in model.named_parameters(remove_duplicate=False) if id(value) in base])
    _take_batches(model, main_input, None if kind == CAUSAL else vocabulary)  # looking back only, it needs no mask
    return model


def _class_for(task: Task | None, input_shape: Shape | None) -> str:
    if task is not None and task.class_of == "token":
        return CAUSAL
    return IMAGES if input_shape is not None and len(input_shape) == 3 else SEQUENCES


def _loaded(
    source: str, kind: str, dtype: str, num_classes: int | None, vocabulary: Vocabulary | None
) -> tuple[Any, set[str]]:
    """Load a model, and name the parameters that its files lack, which are drawn."""
    transformers = _library("transformers", "model.name")
    auto: Any = getattr(transformers, kind, None)
    if not hasattr(auto, "from_pretrained"):
        known = [name for name in dir(transformers) if name.startswith("AutoModel")]
        similar = " or ".join(get_close_matches(kind, known, 2)) or CAUSAL
        raise ValueError(f"model.options.auto_class: transformers has no {kind!r}; did you mean {similar}?")
    sizes = {} if kind == CAUSAL or num_classes is None else {"num_labels": num_classes}
    is_local = Path(source).is_dir()
    settings = sizes | {"dtype": DTYPES[dtype], "local_files_only": is_local, "ignore_mismatched_sizes": bool(sizes)}
    try:
        with _without_bars(transformers):
            model, told = auto.from_pretrained(source, **settings, output_loading_info=True)
    except Exception as error:  # whatever its many formats raise
        problem = f"transformers cannot load {source} as {kind}: {reason_in_code(error)}"
        raise ValueError(f"model.name: {problem}; name a folder of save_pretrained, or a model of the hub") from error
    if vocabulary is not None and vocabulary.pad is not None:
        model.config.pad_token_id = vocabulary.pad  # by which a decoder that classifies finds the end of a text
    model.config.use_cache = False
    return model, {*told["missing_keys"], *(name for name, *_ in told.get("mismatched_keys", ()))}


@contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing progress bars, of which each rank would draw one."""
    bars = transformers.utils.logging
    is_drawn = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if is_drawn:
            bars.enable_progress_bar()


def _library(name: str, key: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise not_installed(key, name, "'flare_dist[hf]'") from error


def _check_vocabulary(model: Any, vocabulary: Vocabulary | None) -> None:
    """Raise ValueError if texts have tokens that the model has no embedding for."""
    size = getattr(model.config, "vocab_size", None)
    if vocabulary is not None and isinstance(size, int) and vocabulary.size > size:
        raise ValueError(
            f"data.tokenizer: has {vocabulary.size} tokens, and model.name knows {size}; name the model's tokenizer"
        )


def _take_batches(model: nn.Module, main_input: str, vocabulary: Vocabulary | None) -> None:
    """Let a model of transformers be called with one batch: a dict of its keyword arguments, or its main input.

    Texts of a `vocabulary` come with their attention mask. What the model returns is its own, a dict.
    """

    def named(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if len(arguments) != 1 or keywords:
            return None
        (batch,) = arguments
        if isinstance(batch, Mapping):
            return (), dict(batch)
        if batch.is_floating_point():
            batch = batch.to(next(module.parameters()).dtype)
        mask = {} if vocabulary is None else {"attention_mask": vocabulary.attention_mask(batch).long()}
        return (), {main_input: batch} | mask

    model.register_forward_pre_hook(named, with_kwargs=True)


def _with_lora(model: nn.Module, lora: Options, task: str | None) -> nn.Module:
    """Freeze a model and add adapters, all or half of whose factors are trained."""
    peft = _library("peft", "model.options.lora")
    settings = dict(lora)
    freezes = settings.pop("freeze_a", False)
    known = [field.name for field in dataclasses.fields(peft.LoraConfig) if field.init]
    for option, value in settings.items():
        if option not in known:
            similar = get_close_matches(option, [*known, "freeze_a"], 1)
            remedy = f"did you mean {similar[0]}?" if similar else "leave it out"
            raise ValueError(f"model.options.lora.{option}: LoraConfig takes no such option, got {value!r}; {remedy}")
    try:
        with warnings.catch_warnings():
            # PEFT asks for it by a name that transformers 5 warns of; nobody who trains can do anything about it.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted: nn.Module = peft.get_peft_model(model, peft.LoraConfig(**({"task_type": task} | settings)))
    except Exception as error:  # whatever it refuses
        raise ValueError(f"model.options.lora: PEFT refuses {settings}: {reason_in_code(error)}") from error
    if freezes:
        for name, value in adapted.named_parameters():
            if set(DRAWN) & set(name.split(".")):
                value.requires_grad_(False)
    return adapted


def base_of_peft(model: nn.Module) -> Iterable[str]:
    """Name the parameters of a model of the user's that are no adapters; none if it has no adapters of PEFT."""
    if not any("peft_config" in vars(part) for part in model.modules()):
        return ()
    adapters = ("lora_", "modules_to_save", "original_module")
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return [name for name in names if not any(part.startswith(adapters) for part in name.split("."))]
