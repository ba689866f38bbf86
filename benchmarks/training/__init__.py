"""Trains segmentation networks with the losses that the paper compares, for `lal-triton train`."""
