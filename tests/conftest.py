"""The kernels run natively where there is a GPU and in Triton's interpreter elsewhere."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
