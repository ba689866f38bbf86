"""Trains a LightningModule in bfloat16, on one process or with DDP on several.

python examples/lightning_module.py --devices 2
"""

import argparse

import torch
from lightning import LightningModule, Trainer, seed_everything
from nuclei import make_network, read_crops
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lal_triton import CrossEntropyLoss


class Segmenter(LightningModule):
    def __init__(self, network: nn.Module, loss_fn: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.loss_fn = loss_fn

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = self.loss_fn(self.network(images), labels)
        self.log("loss", loss, prog_bar=True)
        return self.trainer.world_size * loss  # DDP averages the gradients, which have to sum

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


def make_trainer(devices: int, precision: str) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--precision", default="bf16-mixed")
    arguments = parser.parse_args()
    seed_everything(0)
    loss_fn = CrossEntropyLoss(process_group="world")  # the mean over the valid pixels of all processes
    trainer = make_trainer(arguments.devices, arguments.precision)
    trainer.fit(Segmenter(make_network(), loss_fn), DataLoader(read_crops(size=64), batch_size=4, shuffle=True))
    if trainer.is_global_zero:
        print(f"{trainer.world_size} processes, last loss {trainer.callback_metrics['loss']:.4f}")


if __name__ == "__main__":
    main()
