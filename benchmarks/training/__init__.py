"""Trains segmentation networks with the losses that the paper compares, for `lal-triton train`.

In the order to read them:

loop                         one run, from its last checkpoint on
task                         what a run is made of: examples, network, recipe
samples, losses, evaluation  what the loop calls
experiment                   the command: a run for every loss and seed, then tables and figures
report, pictures             what goes into the tables, and into the figures of masks and gradients
small_tasks                  nuclei and digits, with a U-Net for a CPU
deeplab_voc                  the paper's task, with a GPU
"""
