"""The Triton backend; importing this package imports nothing, so that torch and numpy suffice for `lal_triton`."""
