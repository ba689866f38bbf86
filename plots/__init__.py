"""Plots of a results file of `lal-triton bench` or `lal-triton train`; nothing here measures."""

import json
from pathlib import Path

from lal_triton.plots import charts, training


def draw(results: Path, output: Path) -> list[Path]:
    """Writes the plots that the results suffice for, and returns their paths; ValueError for another file."""
    try:
        data = json.loads(results.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{results} is not a results file of `lal-triton bench` or `lal-triton train`") from None
    of_training = isinstance(data, dict) and "runs" in data
    return (training if of_training else charts).draw(results, output)
