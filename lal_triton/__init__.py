"""Locally Adaptive Learning loss (arXiv 1802.08290) for PyTorch, with Triton kernels.

Importing needs torch and numpy only; Triton is imported when a kernel is first launched.
"""

from lal_triton import functional
from lal_triton.modules import CrossEntropyLoss, FocalLoss, LocallyAdaptiveLoss

__version__ = "0.1.0"
__all__ = ["CrossEntropyLoss", "FocalLoss", "LocallyAdaptiveLoss", "__version__", "functional"]
