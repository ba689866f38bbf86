"""From tensors and options to kernel launches.

plan.py             the forward and the backward of a step on tensors of one kind
full_resolution.py  the launches where the labels have the size of the logits
cells.py            the launches of a loss without a window where the labels are finer
upsampled.py        the launches where the labels are finer
pooling.py          the launches of batch pooling
workspace.py        the buffer that the forward leaves for the backward
arguments.py        what several launches take from tensors and options
launch.py           one launch: what is compiled, and how it is repeated
stand_in.py         a stand-in for the GPU, to compile and look at launches where there is none
"""
