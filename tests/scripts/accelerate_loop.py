"""An ordinary Accelerate script, to which the README's lines are added by a test."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed

directory, resume, steps = Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3])
accelerator = Accelerator()
assert accelerator.num_processes == 2
set_seed(0)
inputs, labels = torch.randn(64, 20), torch.randint(4, (64,))
model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
model, optimizer = accelerator.prepare(model, optimizer)
first = 0
if resume:
    accelerator.load_state(str(directory / "checkpoint"))
    first = int((directory / "step").read_text())
for step in range(first, steps):
    mine = slice(accelerator.process_index + 2 * (step % 8), None, 16)
    optimizer.zero_grad()
    accelerator.backward(F.cross_entropy(model(inputs[mine]), labels[mine]))
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
accelerator.save_state(str(directory / "checkpoint"))
(directory / "step").write_text(str(steps))
accelerator.wait_for_everyone()
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
