"""What each process that torchrun starts for test_example_ranks.py does: one step of an example, in float64.

python example_ranks.py EXAMPLE FOLDER
"""

import importlib
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from nuclei import VOID, make_network, read_crops

from lal_triton import CrossEntropyLoss, LocallyAdaptiveLoss

RANKS = 2
TIMEOUT = timedelta(seconds=60)
LOSSES = {"cross_entropy": CrossEntropyLoss, "lal": LocallyAdaptiveLoss}
SIZE = 32
VOID_ROWS = (0, 1, 2, 4, 8, 16, 24, 31)  # of the crops: no half of them has as many valid pixels as the other half


class MeanOfRanks(CrossEntropyLoss):
    """What DistributedDataParallel makes of a loss without a group, for which the example need not multiply."""

    def forward(self, *tensors):
        return super().forward(*tensors) / RANKS


def make_crops() -> TensorDataset:
    images, labels = read_crops(SIZE)[: len(VOID_ROWS)]
    labels = labels.clone()
    for label, rows in zip(labels, VOID_ROWS, strict=True):
        label[:rows] = VOID
    return TensorDataset(images.double(), labels)


def make_layers():
    torch.manual_seed(0)
    return make_network().double()


def make_segformer():
    """Without what differs between a batch and its parts: batch normalisation and dropout."""
    import segformer

    torch.manual_seed(0)
    config = segformer.make_model().config
    config.drop_path_rate = config.classifier_dropout_prob = 0.0
    config.semantic_loss_ignore_index = -100
    model = segformer.SegformerForSemanticSegmentation(config)
    model.decode_head.batch_norm = torch.nn.Identity()
    return model.double()


def sharded(crops):
    return DataLoader(crops, batch_size=len(crops) // RANKS, sampler=DistributedSampler(crops, shuffle=False))


def step_ddp(example, loss_fn):
    network = make_layers()
    return network, example.train(network, sharded(make_crops()), loss_fn)[0]


def step_accelerate(example, loss_fn):
    """Of the crops 0 to 3 and 4 to 7, which are two micro-batches."""
    network = make_layers()
    accelerator = example.Accelerator(cpu=True, gradient_accumulation_steps=2)
    losses = example.train(accelerator, network, DataLoader(make_crops(), batch_size=2), loss_fn)
    return network, sum(losses) / 2


def step_lightning(example, loss_fn):
    network, crops = make_layers(), make_crops()
    trainer = example.make_trainer(RANKS, "64-true")
    trainer.fit(example.Segmenter(network, loss_fn), DataLoader(crops, batch_size=len(crops) // RANKS))
    return network, trainer.callback_metrics["loss"].item()


def step_huggingface(example, loss, **arguments):
    """Of two micro-batches of two crops, if the `arguments` do not tell otherwise; `loss` may be "model", its own."""
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **arguments}
    descent = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    order = {"num_train_epochs": 1, "train_sampling_strategy": "sequential", "disable_tqdm": True}
    model = make_segformer()
    trainer = example.make_trainer(model, make_crops(), loss, **batches, **descent, **order)
    if loss == "model":
        trainer.compute_loss_func = trainer.loss_is_scaled_for_ga = None
    return model, trainer.train().training_loss


STEPS = {
    "ddp": step_ddp,
    "fsdp2": step_ddp,
    "accelerate_loop": step_accelerate,
    "lightning_module": step_lightning,
    "huggingface_trainer": step_huggingface,
}


def parameters_of(network):
    """Those that are sharded over the ranks as a whole."""
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in parameters.items()}


def main() -> None:
    name, folder = sys.argv[1:]
    torch.set_num_threads(1)
    example = importlib.import_module(name)
    if name in ("ddp", "fsdp2"):
        example.main()
        store = dist.FileStore(str(Path(folder) / "store"), RANKS)  # not that of main
        dist.init_process_group("gloo", store=store, rank=int(os.environ["RANK"]), world_size=RANKS, timeout=TIMEOUT)
    results = {}
    for loss, make_loss in LOSSES.items():
        given = loss if name == "huggingface_trainer" else make_loss(process_group="world")
        network, value = STEPS[name](example, given)
        results[loss] = parameters_of(network), value
    if name == "ddp":
        network, value = step_ddp(example, MeanOfRanks())
        results["mean of ranks"] = parameters_of(network), value
    if name == "huggingface_trainer":
        network, value = step_huggingface(example, "model")
        results["model"] = parameters_of(network), value
    torch.save(results, Path(folder) / f"{os.environ['RANK']}.pt")
    sys.stdout.flush()
    os._exit(0)  # at once: gloo's threads can abort a Python that shuts down (as in pooling_ranks.py)


if __name__ == "__main__":
    main()
