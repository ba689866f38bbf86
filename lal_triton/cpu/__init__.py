"""The loss on CPUs, compiled by numba: a sweep over rows that makes the loss and its gradient together.

op.py         the step of this backend, with its autograd, and its custom ops
backend.py    the sweeps over a batch
targets.py    labels and the weights of pixels, checked and encoded
scaling.py    the gradient times what only the backward knows
sweep.py      the pipeline of a band: logits, score, window, loss, window transposed, score backward, gradient
logits.py     its two ends: rows as they are, or interpolated between low-resolution rows
score.py      the standard score over the classes
window.py     the label-masked window
pixel_loss.py the loss of a pixel
powers.py     what the Minkowski mean makes of a row of losses
elementary.py exp and log
vectors.py    columns side by side as one value, which the stages compute with
rows.py       loops over rows
bands.py      which rows are a band, and the threads that take them
memory.py     memory for rows, and huge pages for gradients
compiling.py  where compiled functions are kept
"""
