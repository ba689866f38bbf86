"""Adapters to frameworks with a protocol of their own. Each module imports its framework; the package imports none."""
