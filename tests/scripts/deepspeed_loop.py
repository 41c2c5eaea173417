"""An ordinary DeepSpeed script, to which the README's lines are added by a test."""

import sys
from pathlib import Path

import deepspeed
import torch
import torch.nn.functional as F

directory, resume, steps = Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3])
torch.manual_seed(0)
inputs, labels = torch.randn(64, 20), torch.randint(4, (64,))
model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
config = {
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
    "zero_optimization": {"stage": 1, "overlap_comm": False},
    "gradient_clipping": 1.0,
}
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
first = 0
if resume:
    engine.load_checkpoint(str(directory / "checkpoint"))
    first = engine.global_steps
for step in range(first, steps):
    mine = slice(engine.global_rank + 2 * (step % 8), None, 16)
    engine.backward(F.cross_entropy(engine(inputs[mine]), labels[mine]))
    engine.step()
engine.save_checkpoint(str(directory / "checkpoint"))
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
