"""Memory of the steps of benchmarks/hosts.py under FSDP2 alone, or of one process without it: what no round can save.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_ARENA_MAX=1 OMP_NUM_THREADS=1 \
        torchrun --standalone --nproc_per_node 2 benchmarks/hosts_plain.py

The same BERT with random weights, on as many ranks as are started, by SGD. It prints what a step takes beyond what is
held between steps, of the rank that takes most.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
from hosts_rank import Memory
from torch.distributed.fsdp import fully_shard
from transformers import BertConfig, BertForSequenceClassification

SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
CLASSES = 53
TEXTS = 8  # of a batch
TOKENS = 16
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    size = dist.get_world_size()
    memory = Memory()
    model: Any = BertForSequenceClassification(BertConfig(**SHAPE, num_labels=CLASSES))
    whole = sum(parameter.numel() for parameter in model.parameters())
    group = max(parameter.numel() for parameter in model.parameters())
    if size > 1:
        for block in model.bert.encoder.layer:
            fully_shard(block)
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randint(1000, (TEXTS // size, TOKENS))
    labels = torch.randint(CLASSES, (TEXTS // size,))

    def step() -> dict[str, Any]:
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {}

    play = memory.watched(step)
    play()  # which warms up
    memory.peak = memory.state = 0
    for _ in range(STEPS):
        play()
    taken = torch.tensor(memory.peak - memory.state)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print(
            f"{size} ranks: {4 * whole / 1e6:.0f} MB of weights, the largest tensor {4 * group / 1e6:.0f}; "
            f"a step takes {int(taken) / 1e6:.0f} MB beyond what is held between steps"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
