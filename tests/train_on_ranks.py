"""What each process that torchrun starts for test_training_ranks.py does: runs over all of them, in float64.

python train_on_ranks.py FOLDER LOSS [LOSS ...]
"""

import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from tiny_task import make_task_with_void

from lal_triton.benchmarks.training.experiment import processes
from lal_triton.benchmarks.training.loop import train
from lal_triton.benchmarks.training.samples import Stream
from lal_triton.progress import start_bar

STOPPED_IN = 5


def train_in_two_parts(loss: str, folder: Path, fabric: Fabric) -> None:
    """The rank that draws a certain sample is told to stop, which all of them must do in the same iteration."""
    task, bar = make_task_with_void(), start_bar(0, shown=False)
    draw = Stream.__getitem__

    def interrupting(self: Stream, index: int):
        if index == STOPPED_IN * task.recipe.batch_size - 1:
            signal.raise_signal(signal.SIGTERM)
        return draw(self, index)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stream, "__getitem__", interrupting)
        with pytest.raises(KeyboardInterrupt, match=f"iteration {STOPPED_IN};"):
            train(task, loss, 0, folder, fabric, bar)
    train(task, loss, 0, folder, fabric, bar)


def main() -> None:
    folder, *losses = sys.argv[1:]
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # to which Fabric converts the network's output
    with processes("64-true") as fabric:
        for loss in losses:
            train(make_task_with_void(), loss, 0, Path(folder) / loss, fabric, start_bar(0, shown=False))
        train_in_two_parts("center", Path(folder) / "parts", fabric)
    threads = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    assert not any("gloo" in name for name in threads), threads


if __name__ == "__main__":
    main()
