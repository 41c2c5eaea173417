"""An ordinary DDP script, to which the README's lines are added by a test."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

directory, resume, steps = Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3])
dist.init_process_group("gloo")
torch.manual_seed(0)
inputs, labels = torch.randn(64, 20), torch.randint(4, (64,))
model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
first = 0
if resume:
    saved = torch.load(directory / "checkpoint.pt")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["step"]
ddp = DistributedDataParallel(model)
for step in range(first, steps):
    mine = slice(dist.get_rank() + 2 * (step % 8), None, 16)
    optimizer.zero_grad()
    F.cross_entropy(ddp(inputs[mine]), labels[mine]).backward()
    optimizer.step()
if dist.get_rank() == 0:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": steps}
    torch.save(state, directory / "checkpoint.pt")
dist.barrier()
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
