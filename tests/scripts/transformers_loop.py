"""An ordinary Trainer of transformers; a test puts the README's callback where the comment is."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers

directory, resume, steps = Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3])
torch.manual_seed(0)
examples = [{"x": torch.randn(20), "labels": torch.randint(4, ())} for _ in range(64)]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": F.cross_entropy(self.net(x), labels)}


# callback
arguments = transformers.TrainingArguments(
    output_dir=str(directory),
    per_device_train_batch_size=4,
    max_steps=steps,
    save_steps=6,
    learning_rate=0.01,
    lr_scheduler_type="constant",
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
)
model = Model()
trainer = transformers.Trainer(model=model, args=arguments, train_dataset=examples)
# add
trainer.train(resume_from_checkpoint=str(directory / "checkpoint-6") if resume else None)
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
