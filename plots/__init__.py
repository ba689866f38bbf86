"""Plots of a results file of the benchmark; nothing here measures."""

from lal_triton.plots.charts import draw

__all__ = ["draw"]
