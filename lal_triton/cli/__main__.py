"""`python -m lal_triton.cli`, which torchrun and other processes start."""

import sys

from lal_triton.cli import main

if __name__ == "__main__":  # processes that compile import it, too
    sys.exit(main())
