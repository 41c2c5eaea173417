"""Hugging Face's Trainer with sparse gradients: one callback more (pip install 'flare_dist[hf]').

torchrun --nproc_per_node 2 hook_trainer.py          # dense: --density 1
"""

import argparse

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.trainer_utils import EvalPrediction

import flare_dist

TOKENS, LENGTH = 40, 12


def sequences(n: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Make sequences of tokens; the label tells whether token 1 is among them."""
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, TOKENS, (n, LENGTH), generator=draws)
    labels = torch.arange(n) % 2
    tokens[labels == 1, 5] = 1
    return [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels)]


def accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(evaluated.predictions.argmax(1) == evaluated.label_ids))}


def main(density: float, steps: int) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=TOKENS, **sizes))
    settings = TrainingArguments(
        "runs/hook_trainer", max_steps=steps, per_device_train_batch_size=16, learning_rate=3e-3, adam_beta1=0.0,
        max_grad_norm=0.0, save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
        ddp_find_unused_parameters=False, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    callback = flare_dist.HookCallback(density=density, clip_norm=1.0)  # the line
    trainer = Trainer(
        model, settings, train_dataset=sequences(512, 1), eval_dataset=sequences(128, 2), callbacks=[callback],
        compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    found = trainer.evaluate()["eval_accuracy"]
    if trainer.is_world_process_zero():
        assert callback.hook is not None
        print(f"accuracy {found:.3f} after {steps} steps, {callback.hook.wire_bytes:,} bytes on the wire")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=60)
    main(**vars(parser.parse_args()))
