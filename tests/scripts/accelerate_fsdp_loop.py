"""An ordinary Accelerate script whose model FSDP2 shards inside each of two replicas; it runs on GPUs as it is."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, FullyShardedDataParallelPlugin, ParallelismConfig
from accelerate.utils import set_seed

directory, resume, steps = Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3])
plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=100)
accelerator = Accelerator(
    fsdp_plugin=plugin, parallelism_config=ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)
)
set_seed(0)
inputs, labels = torch.randn(64, 20), torch.randint(4, (64,))
model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
first = 0
if resume:
    accelerator.load_state(str(directory / "checkpoint"))
    first = int((directory / "step").read_text())
for step in range(first, steps):
    mine = slice(accelerator.process_index + 4 * (step % 4), None, 16)
    optimizer.zero_grad()
    accelerator.backward(F.cross_entropy(model(inputs[mine]), labels[mine]))
    accelerator.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
accelerator.save_state(str(directory / "checkpoint"))
(directory / "step").write_text(str(steps))
accelerator.wait_for_everyone()
weights = torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])
