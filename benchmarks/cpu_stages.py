# mypy: ignore-errors
"""Time of each stage of the CPU's sweep, in ns of one core for a pixel and class: python benchmarks/cpu_stages.py

Rows of random logits at full resolution, with labels in squares, go through one stage again and again, in cache as in a
sweep.
"""

import argparse
import statistics
import time

import numba
import numpy as np
import torch

from lal_triton.cpu import backend, sweep
from lal_triton.cpu.compiling import OPTIONS
from lal_triton.cpu.pixel_loss import differentiate, exponentiate, pixel_loss
from lal_triton.cpu.score import score, unscore
from lal_triton.cpu.vectors import broadcast, lanes
from lal_triton.cpu.window import find_taps, merge
from lal_triton.options import make_options

REPEATS = 200
compiled = numba.njit(**OPTIONS)


@compiled
def standardise(space, window, settings, ones, columns, repeats):
    border = window.columns // 2
    for m in range(repeats):
        at = m % len(space.rings.scores)
        for i in range(border, border + columns, lanes(space.f)):
            score(space.rings.scores[at], i, space.rings.rstds[at], settings.eps)


@compiled
def find(space, window, settings, ones, columns, repeats):
    for m in range(repeats):
        find_taps(space.rings.labels, m, window, space.taps, space.inverse_xi[0])


@compiled
def gather(space, window, settings, ones, columns, repeats):
    one = broadcast(1, space.f)
    for m in range(0, repeats, 2):
        for i in range(0, columns, lanes(space.f)):
            merge(space.rings.scores, m, window, space.taps.weights, i, one, one, space.f)


@compiled
def lose(space, window, settings, ones, columns, repeats):
    border, f, planes = window.columns // 2, space.f[0], space.planes[0]
    for m in range(repeats):
        labels = space.rings.labels[m % len(space.rings.labels)]
        for i in range(0, columns, lanes(f)):
            exponentiate(f, i, labels, border, ones, settings, planes)
        pixel_loss(labels[border : border + columns], ones, len(ones), settings, planes)


@compiled
def slope(space, window, settings, ones, columns, repeats):
    border, f, planes = window.columns // 2, space.f[0], space.planes[0]
    for m in range(repeats):
        at = m % len(space.rings.labels)
        labels, g = space.rings.labels[at], space.rings.slopes[at]
        for i in range(0, columns, lanes(f)):
            differentiate(f, i, labels, border, ones, settings.smoothing, len(ones), planes, g)


@compiled
def score_backward(space, window, settings, ones, columns, repeats):
    f = space.f[0]
    for m in range(repeats):
        at = m % len(space.rings.scores)
        for i in range(0, columns, lanes(f)):
            unscore(f, space.rings.scores[at], space.rings.rstds[at], window.columns // 2, i)


STAGES = {
    "score": standardise,
    "find taps": find,
    "merge, once of twice": gather,
    "cost": lose,
    "cost's gradient": slope,
    "score's backward": score_backward,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel-size", type=int, default=5)
    parser.add_argument("--num-classes", type=int, default=21)
    parser.add_argument("--width", type=int, default=320)
    chosen = parser.parse_args()
    options = make_options(kernel_size=chosen.kernel_size)
    window = backend._window(options, np.float32)
    settings = backend._settings(options, chosen.num_classes, 3.0, np.float32)
    space = sweep.make_workspace(window, None, chosen.num_classes, chosen.width, torch.float32)
    generator = np.random.default_rng(0)
    space.rings.scores[:] = generator.standard_normal(space.rings.scores.shape)
    space.rings.slopes[:] = generator.standard_normal(space.rings.slopes.shape)
    space.rings.labels[:] = np.arange(space.rings.labels.shape[1]) // 32 % chosen.num_classes
    ones = np.ones(chosen.num_classes, np.float32)
    for name, stage in STAGES.items():
        stage(space, window, settings, ones, chosen.width, 1)
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            stage(space, window, settings, ones, chosen.width, REPEATS)
            times.append((time.perf_counter() - begin) / (REPEATS * chosen.width * chosen.num_classes))
        print(f"{name:20} {1e9 * min(times):6.2f} {1e9 * statistics.median(times):6.2f}")


if __name__ == "__main__":
    main()
