"""Random scale, crop and flip of an example, by MONAI."""

from collections.abc import Callable

from monai.transforms import Compose, RandFlipd, RandSpatialCropd, RandZoomd, SpatialPadd

from lal_triton.benchmarks.scenes import VOID
from lal_triton.benchmarks.training.recipe import Recipe
from lal_triton.benchmarks.training.task import Example

KEYS = ("image", "target")
GREY = 0.45  # the mean over ImageNet, and so about 0 after the standardisation


def make_augmentation(recipe: Recipe) -> Callable[[Example, int], Example]:
    """A function of (example, seed in [0, 2^32)), and of nothing else; the crops are `crop_size` square.

    An example that is smaller than that when it is scaled has a margin, grey in the image and void in the target.
    """
    size = (recipe.crop_size, recipe.crop_size)
    low, high = recipe.scales
    zoom = RandZoomd(KEYS, 1.0, low, high, mode=("bilinear", "nearest-exact"), keep_size=False)
    compose = Compose(
        [
            *([zoom] if low < high else []),
            SpatialPadd("image", size, mode="constant", value=GREY),
            SpatialPadd("target", size, mode="constant", value=VOID),
            RandSpatialCropd(KEYS, size, random_size=False),
            RandFlipd(KEYS, 0.5 if recipe.flip else 0.0, spatial_axis=1),
        ]
    )

    def augment(example: Example, seed: int) -> Example:
        compose.set_random_state(seed)
        result = compose({"image": example.image, "target": example.target[None]})
        return Example(example.name, result["image"].as_tensor(), result["target"].as_tensor()[0].long())

    return augment
