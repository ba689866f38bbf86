"""Trains segmentation networks with the losses that the paper compares, for `lal-triton train`.

In the order to read them:

task         what a run is made of: examples, network, recipe
loop         one run, from its last checkpoint on; with its parts in `samples`, `losses` and `evaluation`
experiment   the command: a run for every loss and seed, then its tables (`report`) and figures (`pictures`)
small_tasks  nuclei and digits, with a U-Net for a CPU
deeplab_voc  the paper's task, with a GPU
"""
