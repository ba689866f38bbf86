"""Locally Adaptive Learning loss (arXiv 1802.08290) for PyTorch, with Triton kernels.

Importing needs torch and numpy only; Triton is imported when a kernel is first launched.
"""

from typing import TYPE_CHECKING, Any

from lal_triton import functional
from lal_triton.modules import CenterLoss, CrossEntropyLoss, FocalLoss, LocallyAdaptiveLoss

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    if name == "tune":
        from lal_triton.tuning.search import tune

        return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
