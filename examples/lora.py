"""Five authors tune LoRA adapters of one model; its frozen weights never travel (pip install 'flare_dist[hf]').

python lora.py
torchrun --nproc_per_node 2 lora.py   # any number of ranks, with the same bits
"""

import json
import os
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import flare_dist

RANK = os.environ.get("RANK", "0")
MADE = os.path.abspath(f"runs/lora_made/{RANK}")  # each rank makes its own, so that none waits for another
TOPICS = {"hill": "rock path summit snow", "sea": "wave sail harbour tide", "town": "street shop tower tram"}
COMMON = ["we", "saw", "the", "old", "far", "side", "of", "it", "all", "day", "and", "then", "went", "home"]
TEXTS = {"name": "text", "root": f"{MADE}/texts.jsonl", "tokenizer": f"{MADE}/bert", "sequence_length": 12}
CONFIG: dict[str, Any] = {
    "engine": {"threads": 1},  # a rank: on it the bits depend
    "rounds": 10,
    "output_dir": "runs/lora",
    "checkpoint": {"resume": "never"},  # each start begins anew, since what is here may have been edited
    "data": {**TEXTS, "partition": "natural"},
    "model": {"name": f"hf:{MADE}/bert", "options": {"lora": {"r": 8, "target_modules": ["query", "value"]}}},
    "clients": {"num": "auto", "batch_size": 16, "optimizer": "adam", "lr": 0.02},
    "compression": {"sparsifier": "topk", "density": 0.05, "value_codec": "fp16"},
}


def make() -> None:
    """Save a tokenizer of words, a small BERT at random in place of a pretrained one, and texts of three topics."""
    draws, words = np.random.default_rng(0), ["[PAD]", *COMMON, *" ".join(TOPICS.values()).split()]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(f"{MADE}/bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(words), initializer_range=0.1, **sizes)).save_pretrained(f"{MADE}/bert")
    with open(f"{MADE}/texts.jsonl", "w") as lines:
        for n in range(500):
            topic = list(TOPICS)[draws.integers(3)]
            text = draws.permutation([*draws.choice(COMMON, 7), *draws.choice(TOPICS[topic].split(), 3)])
            print(json.dumps({"text": " ".join(text), "label": topic, "group": f"author {n % 5}"}), file=lines)


if __name__ == "__main__":
    make()
    run = flare_dist.train(CONFIG, on_round=lambda row: print("round", row["round"], "accuracy", row["test_accuracy"]))
    if RANK == "0":
        model: Any = run.model()
        share = model.num_parameters(only_trainable=True) / model.num_parameters()
        sent, dense = run.summary["uplink_bytes"], run.summary["dense_bytes"]
        print(f"{share:.1%} of the weights trained; {sent:,} bytes up")
        print(f"dense adapters: {dense:,} bytes; the whole model: {dense / share:,.0f}")
        model.save_pretrained("runs/lora/adapter")  # in PEFT's layout
