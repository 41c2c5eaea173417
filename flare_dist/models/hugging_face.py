"""Models of Hugging Face, whole or with adapters: `model.name: hf:DIR_OR_NAME` (pip install 'flare_dist[hf]')."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flare_dist.errors import check_choice, not_installed, reason_in_code
from flare_dist.fixed import fix_base
from flare_dist.models.adapters import with_lora
from flare_dist.named import Options
from flare_dist.tasks.task import Shape, Task
from flare_dist.vocabulary import Vocabulary

log = logging.getLogger(__name__)

PREFIX = "hf:"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What a model is for: its class among transformers' Auto classes, and what PEFT calls it.
CAUSAL = "AutoModelForCausalLM"
SEQUENCES = "AutoModelForSequenceClassification"
IMAGES = "AutoModelForImageClassification"
PEFT_TASKS = {CAUSAL: "CAUSAL_LM", SEQUENCES: "SEQ_CLS"}


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
        model = with_lora(model, lora, PEFT_TASKS.get(kind))
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
    try:
        import transformers
    except ImportError as error:
        raise not_installed("model.name", "transformers", "'flare_dist[hf]'") from error
    auto = _auto_class(transformers, kind)
    sizes = {} if kind == CAUSAL or num_classes is None else {"num_labels": num_classes}
    is_local = Path(source).is_dir()
    settings = sizes | {"dtype": DTYPES[dtype], "local_files_only": is_local, "ignore_mismatched_sizes": bool(sizes)}
    try:
        with _quiet(transformers):
            model, told = auto.from_pretrained(source, **settings, output_loading_info=True)
    except Exception as error:  # whatever its many formats raise
        problem = f"transformers cannot load {source} as {kind}: {reason_in_code(error)}"
        raise ValueError(f"model.name: {problem}; name a folder of save_pretrained, or a model of the hub") from error
    if vocabulary is not None and vocabulary.pad is not None:
        model.config.pad_token_id = vocabulary.pad  # by which a decoder that classifies finds the end of a text
    model.config.use_cache = False
    drawn = {*told["missing_keys"], *(name for name, *_ in told.get("mismatched_keys", ()))}
    if drawn:
        log.info("model.name: %s begins at random, for the files lack %s", source, ", ".join(sorted(drawn)[:4]))
    return model, drawn


def _auto_class(transformers: Any, kind: str) -> Any:
    """Find a class of transformers that loads models; ValueError with a similar one if there is none."""
    auto: Any = getattr(transformers, kind, None)
    if not hasattr(auto, "from_pretrained"):
        known = [name for name in dir(transformers) if name.startswith("AutoModel")]
        similar = " or ".join(get_close_matches(kind, known, 2)) or CAUSAL
        raise ValueError(f"model.options.auto_class: transformers has no {kind!r}; did you mean {similar}?")
    return auto


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing progress bars, and from reporting what is reported in one line here."""
    its_log = transformers.utils.logging
    is_drawn = its_log.is_progress_bar_enabled()
    verbosity = its_log.get_verbosity()
    its_log.disable_progress_bar()
    its_log.set_verbosity_error()
    try:
        yield
    finally:
        its_log.set_verbosity(verbosity)
        if is_drawn:
            its_log.enable_progress_bar()


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
