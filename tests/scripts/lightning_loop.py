"""An ordinary Lightning script; a test puts the README's callback where the comment is."""

import sys
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

directory, resume, steps = Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3])
torch.manual_seed(0)
data = DataLoader(TensorDataset(torch.randn(48, 20), torch.randint(4, (48,))), batch_size=4)


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


callbacks = [ModelCheckpoint(dirpath=directory, save_last=True, every_n_train_steps=6)]
# callback
# add
model = Model()
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_steps=steps,
    default_root_dir=directory,
    callbacks=callbacks,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, data, ckpt_path=str(directory / "last.ckpt") if resume else None)
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
