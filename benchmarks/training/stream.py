"""The samples of a run: the i-th is a function of the run's seed and i, so that no state of it need be stored."""

from collections.abc import Sequence

import numpy as np
from torch.utils.data import DataLoader, Dataset

from lal_triton.benchmarks.training.augmentation import make_augmentation
from lal_triton.benchmarks.training.recipe import Recipe
from lal_triton.benchmarks.training.task import Example

ORDER, AUGMENTATION = 0, 1  # what a seed is for


class Stream(Dataset[Example]):
    """Epoch by epoch, in another order each, and augmented; any index from 0 on."""

    def __init__(self, examples: Sequence[Example], recipe: Recipe, seed: int) -> None:
        self.examples = examples
        self.seed = seed
        self.augment = make_augmentation(recipe)

    def __getitem__(self, index: int) -> Example:
        epoch, place = divmod(index, len(self.examples))
        order = np.random.default_rng([self.seed, ORDER, epoch]).permutation(len(self.examples))
        (augmentation_seed,) = np.random.SeedSequence([self.seed, AUGMENTATION, index]).generate_state(1)
        return self.augment(self.examples[int(order[place])], int(augmentation_seed))


def make_loader(stream: Stream, recipe: Recipe, start: int, rank: int, ranks: int, workers: int) -> DataLoader[Example]:
    """Batches of the iterations from `start` on: every `ranks`-th sample, from `rank` on, of the global batch.

    Images `[n, 3, S, S]` and targets `[n, S, S]`, as an `Example`. ValueError where a rank would have no sample.
    """
    if ranks > recipe.batch_size:
        raise ValueError(f"batch_size = {recipe.batch_size} for {ranks} processes, expected at least one sample each")
    batches = [
        list(range(iteration * recipe.batch_size + rank, (iteration + 1) * recipe.batch_size, ranks))
        for iteration in range(start, recipe.iterations)
    ]
    return DataLoader(stream, batch_sampler=batches, num_workers=workers)
