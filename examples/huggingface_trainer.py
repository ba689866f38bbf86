"""Trains a small SegFormer with transformers' Trainer, with gradients of four micro-batches accumulated.

python examples/huggingface_trainer.py
torchrun --nproc-per-node 2 examples/huggingface_trainer.py --loss lal
"""

import argparse
from typing import Any

import torch
from nuclei import VOID, read_crops
from segformer import make_model
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SemanticSegmenterOutput

from lal_triton import CrossEntropyLoss, LocallyAdaptiveLoss

IGNORED = -100  # num_items_in_batch is the number of labels other than -100, so the void ones have to be -100
cross_entropy = CrossEntropyLoss(reduction="sum", ignore_index=IGNORED)
lal = LocallyAdaptiveLoss(ignore_index=IGNORED, process_group="world")


def mean_over_pixels(outputs: SemanticSegmenterOutput, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """This micro-batch's part of the mean over the valid pixels of all micro-batches and processes."""
    return cross_entropy(outputs.logits, labels) / num_items_in_batch.clamp(min=1)


def mean_over_images(outputs: SemanticSegmenterOutput, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """The loss of the micro-batches of all processes, which the Trainer has to divide by their number in time."""
    return lal(outputs.logits, labels)


def make_trainer(model: nn.Module, crops: TensorDataset, loss: str, **arguments: Any) -> Trainer:
    dataset = [{"pixel_values": image, "labels": labels.where(labels != VOID, IGNORED)} for image, labels in crops]
    options = {"use_cpu": True, "save_strategy": "no", "report_to": "none", "average_tokens_across_devices": True}
    trainer = Trainer(
        model,
        TrainingArguments(**options, **arguments),
        train_dataset=dataset,
        compute_loss_func=mean_over_pixels if loss == "cross_entropy" else mean_over_images,
    )
    trainer.loss_is_scaled_for_ga = loss == "cross_entropy"  # by num_items_in_batch
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--loss", choices=["cross_entropy", "lal"], default="cross_entropy")
    loss = parser.parse_args().loss
    torch.manual_seed(0)
    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 1}
    trainer = make_trainer(make_model(), read_crops(size=64), loss, learning_rate=1e-3, logging_steps=1, **arguments)
    trainer.train()


if __name__ == "__main__":
    main()
