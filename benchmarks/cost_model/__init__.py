"""What the kernels execute and take of a GPU, told from their machine code: no GPU is needed, but Triton is."""
