"""The benchmark: what is timed, on which data, against which peers. Plots are drawn by `lal_triton.plots`."""
