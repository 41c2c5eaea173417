"""Random tiny models of Hugging Face on the disk, and texts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flare_dist.data.config import DataConfig
from flare_dist.models.config import ModelConfig
from flare_dist.seeding import seeded
from flare_dist.tasks.config import TaskConfig
from tests.helpers.texts import write_lines

LORA = {"r": 2, "target_modules": ["query", "value"]}


def tiny_bert(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Save a BERT of one layer for 257 tokens, without a head."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=257, max_position_embeddings=24, **sizes | settings)
    with seeded(seed):
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, seed: int = 0) -> Path:
    """Save a Llama of one layer for 257 tokens."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with seeded(seed):
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=257, **sizes)).save_pretrained(folder)
    return folder


def write_texts(folder: Path) -> Path:
    """Write 60 short texts of two classes, by five authors."""
    rows = [
        {
            "text": f"{'good' if n % 2 else 'bad'} and more of it {n}",
            "label": "yes" if n % 2 else "no",
            "group": f"author {n % 5}",
        }
        for n in range(60)
    ]
    write_lines(folder / "texts.jsonl", *rows)
    return folder


def of_hub(folder: Path, texts: Path, task: str = "classification", **options: Any) -> dict[str, Any]:
    """Return the sections of a configuration that trains the model in `folder` on `texts`."""
    return {
        "model": ModelConfig(f"hf:{folder}", options),
        "data": DataConfig(name="text", root=str(texts), tokenizer="bytes", sequence_length=8),
        "task": TaskConfig(name=task),
    }


def seeded_tokens(examples: int = 4) -> torch.Tensor:
    return torch.randint(256, (examples, 8), generator=torch.Generator().manual_seed(0))
