"""The samples of a run: the i-th is a function of the run's seed and i, so that no state of it need be stored."""

from collections.abc import Sequence

import numpy as np
from monai.transforms import Compose, RandFlipd, RandSpatialCropd, RandZoomd, SpatialPadd
from torch.utils.data import DataLoader, Dataset

from lal_triton.benchmarks.scenes import VOID
from lal_triton.benchmarks.training.task import Example, Recipe

KEYS = ("image", "target")
GREY = 0.45  # the mean over ImageNet, and so about 0 after the standardisation
ORDER, AUGMENTATION = 0, 1  # what a seed is for


class Stream(Dataset[Example]):
    """Epoch by epoch, in another order each, scaled, cropped and flipped at random; any index from 0 on.

    The crops are `crop_size` square. An example that is smaller than that when it is scaled has a margin, grey in the
    image and void in the target.
    """

    def __init__(self, examples: Sequence[Example], recipe: Recipe, seed: int) -> None:
        self.examples = examples
        self.seed = seed
        size = (recipe.crop_size, recipe.crop_size)
        low, high = recipe.scales
        zoom = RandZoomd(KEYS, 1.0, low, high, mode=("bilinear", "nearest-exact"), keep_size=False)
        self.augment = Compose(
            [
                *([zoom] if low < high else []),
                SpatialPadd("image", size, mode="constant", value=GREY),
                SpatialPadd("target", size, mode="constant", value=VOID),
                RandSpatialCropd(KEYS, size, random_size=False),
                RandFlipd(KEYS, 0.5 if recipe.flip else 0.0, spatial_axis=1),
            ]
        )

    def __getitem__(self, index: int) -> Example:
        epoch, place = divmod(index, len(self.examples))
        order = np.random.default_rng([self.seed, ORDER, epoch]).permutation(len(self.examples))
        example = self.examples[int(order[place])]
        (augmentation_seed,) = np.random.SeedSequence([self.seed, AUGMENTATION, index]).generate_state(1)
        self.augment.set_random_state(int(augmentation_seed))
        augmented = self.augment({"image": example.image, "target": example.target[None]})
        return Example(example.name, augmented["image"].as_tensor(), augmented["target"].as_tensor()[0].long())


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
