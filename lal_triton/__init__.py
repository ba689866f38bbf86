"""Segmentation losses for PyTorch: cross-entropy, focal and Locally Adaptive Learning loss (arXiv 1802.08290).

A name of `__all__` is imported, and torch with it, when it is first used: the command `lal-triton` parses its arguments
without them. Triton is imported when a kernel is first launched.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lal_triton import functional
    from lal_triton.modules import CenterLoss, CrossEntropyLoss, FocalLoss, LocallyAdaptiveLoss
    from lal_triton.tuning.search import tune

__version__ = "0.1.0"
__all__ = [
    "CenterLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "LocallyAdaptiveLoss",
    "__version__",
    "functional",
    "tune",
]

_folder = os.path.dirname(__file__)
if not os.path.isdir(os.path.join(_folder, "kernels")):  # in a checkout kernels, benchmarks and plots lie beside it
    __path__.append(os.path.dirname(_folder))

if not TYPE_CHECKING:  # to a type checker it would promise every name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "functional":
            return importlib.import_module("lal_triton.functional")
        home = importlib.import_module("lal_triton.tuning.search" if name == "tune" else "lal_triton.modules")
        globals()[name] = getattr(home, name)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
