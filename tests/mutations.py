"""Break the package in one place at a time, and see that the tests notice.

Run as a script (`make mutations`): each mutation is a patch of one file in a copy of the tree, on which the tests that
should notice are run. It prints a table, and exits with 1 where a mutation survives, with 2 where a patch does not fit
or tests fail without one.

    python tests/mutations.py [--only NAME] [--write]

--only runs one mutation, --write keeps the table of all of them in tests/mutations.md.
"""

import argparse
import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).with_suffix(".md")
FOLDERS = ("lal_triton", "kernels", "benchmarks", "plots", "tests")
WORKERS = 2
SECONDS = 300


class Mutation(NamedTuple):
    name: str
    file: str
    old: str  # is once in the file
    new: str
    tests: str  # arguments of pytest


class Outcome(NamedTuple):
    caught_by: str | None  # what failed first; a timeout and a crash count, too
    seconds: float


KERNELS = "tests/test_kernels.py -k 'test_merging_again or test_options or test_interior_tiles or test_shapes'"
TRITON = "tests/test_backends.py -k 'triton and test_every_option'"
CPU = "tests/test_backends.py -k 'cpu and (test_every_option or powers or bands)'"
UPSAMPLED = "tests/test_upsampled_kernels.py -k 'test_every_ratio and lal'"
CELLS = "tests/test_cells.py -k 'whole_ratios or options or half'"
UPSAMPLING = "tests/test_upsampling.py -k 'test_every_option or test_every_ratio'"
VOID = "tests/test_mutants.py -k void"
RANKS = "tests/test_process_group.py"
FRAMES = "tests/test_upsampled_kernels.py -m 'long or not long'"

MUTATIONS = [
    # ---- kernels
    Mutation(
        "no mask of labels in the window",
        "kernels/window.py",
        "weight = tl.where(label == own[j], scale * w, 0.0)",
        "weight = scale * w",
        KERNELS,
    ),
    Mutation(
        "a tap one column off",
        "kernels/window.py",
        "x_ptr = line + wide(cc - KW // 2) * strides.w",
        "x_ptr = line + wide(cc - KW // 2 + 1) * strides.w",
        KERNELS,
    ),
    Mutation("1 / xi skipped, kernels", "kernels/window.py", "tl.div_rn(1.0, xi[j]), 0.0)", "1.0, 0.0)", KERNELS),
    Mutation(
        "window not mirrored in the backward",
        "kernels/host/full_resolution.py",
        "options.window[::-1] if backward",
        "options.window if backward",
        KERNELS,
    ),
    Mutation(
        "own class counted among the others",
        "kernels/forward.py",
        "other = near.own[j] != c",
        "other = near.own[j] != c - C",
        KERNELS,
    ),
    Mutation(
        "maximum not subtracted",
        "kernels/forward.py",
        "so_far = total[j] * tl.exp(top[j] - highest)",
        "so_far = total[j]",
        "tests/test_kernels.py -k 'test_large_logits or test_options'",
    ),
    Mutation(
        "no border in the slow loop",
        "kernels/window.py",
        "weighs = weighs | (weights[weight_index(r, cc, j, S)] != 0)",
        "weighs = weighs | (weights[weight_index(r, cc, j, S)] == weights[weight_index(r, cc, j, S)])",
        "tests/test_non_finite.py -k 'triton and nan and what_stands and not upsampled'",
    ),
    Mutation(
        "NaN at void not flagged",
        "kernels/preparation.py",
        'tl.where(zeros == 0.0, 0.0, float("inf"))',
        "0.0",
        VOID,
    ),
    Mutation(
        "flag of the own band of rows only",
        "kernels/window.py",
        "near = tl.minimum(tl.maximum(band + step - REACH, 0), bands - 1)",
        "near = band",
        VOID,
    ),
    Mutation(
        "variance of large logits overflows",
        "kernels/preparation.py",
        "unit = tl.where(finite, 1.0, SMALL_UNIT)",
        "unit = tl.where(finite, 1.0, 1.0)",
        "tests/test_non_finite.py -k 'triton and large'",
    ),
    Mutation(
        "square of 1 / std in the backward",
        "kernels/backward.py",
        "(rstds[j] / C) * rstds[j],)",
        "(rstds[j] * rstds[j] / C),)",
        "tests/test_non_finite.py -k 'triton and large'",
    ),
    Mutation(
        "eps forgotten", "kernels/preparation.py", "squares / size.C + eps * unit * unit", "squares / size.C", KERNELS
    ),
    Mutation(
        "gradient not multiplied by grad_output",
        "kernels/pooling.py",
        "factor = tl.load(gradient_ptr).to(tl.float32)",
        "factor = tl.load(gradient_ptr).to(tl.float32) * 0.0 + 1.0",
        TRITON,
    ),
    Mutation(
        "one norm for all images",
        "kernels/pooling.py",
        "norm = tl.load(pooled + 4 + pixels.n)",
        "norm = tl.load(pooled + 4)",
        TRITON,
    ),
    Mutation(
        "no wait for the other programs",
        "kernels/pooling.py",
        "if arrived == size - 1:",
        "if tl.program_id(0) == size - 1:",
        "tests/test_program_order.py",
    ),
    Mutation(
        "stride of the centres off by one",
        "kernels/pixel_loss.py",
        "(row % stride == 0)",
        "((row + 1) % stride == 0)",
        KERNELS,
    ),
    Mutation(
        "focal slope without its second term",
        "kernels/pixel_loss.py",
        "slope = 1.0 + options.gamma * (1.0 - one_minus_p) * tl.div_rn(nll, safe)",
        "slope = 1.0",
        KERNELS,
    ),
    Mutation(
        "bilinear weights swapped",
        "kernels/footprint.py",
        "tl.where(lower == k, 1.0 - upper, tl.where(lower == k - 1, upper, 0.0))",
        "tl.where(lower == k, upper, tl.where(lower == k - 1, 1.0 - upper, 0.0))",
        UPSAMPLED,
    ),
    Mutation(
        "a diagonal neighbour left out of the gradient",
        "kernels/low_resolution.py",
        "for k in tl.static_range(9):\n                value",
        "for k in tl.static_range(8):\n                value",
        UPSAMPLED,
    ),
    Mutation(
        "variance of interpolated pixels without its cross terms",
        "kernels/low_resolution.py",
        "return near + t * (2.0 * (mixed - near) + t * (near - 2.0 * mixed + far))",
        "return near + t * (-2.0 * near + t * (near + far))",
        UPSAMPLED,
    ),
    Mutation(
        "right border one column off",
        "kernels/window.py",
        "return (row >= 0) & (row < H) & (col >= 0) & (col < W)",
        "return (row >= 0) & (row < H) & (col >= 0) & (col <= W)",
        KERNELS,
    ),
    Mutation(
        "pivot not subtracted from f_y",
        "kernels/window.py",
        "mask=mask, other=none) - pivot",
        "mask=mask, other=none)",
        "tests/test_kernels.py -k test_common_offset",
    ),
    Mutation(
        "no NaN at labels out of range",
        "kernels/forward.py",
        'loss = tl.where(near.own[j] == INVALID, float("nan"), loss)',
        "loss = loss + 0.0",
        "tests/test_kernels.py -k labels_out_of_range",
    ),
    Mutation(
        "smoothing without class weights",
        "kernels/forward.py",
        "smoothing_sum[j] + class_weight(class_weight_ptr, c, L) * difference,",
        "smoothing_sum[j] + difference,",
        "tests/test_kernels.py -k class_weights",
    ),
    Mutation(
        "gradient without that of the standard deviation",
        "kernels/backward.py",
        "value = rstds[j] * (value - logit * slope[j])",
        "value = rstds[j] * value",
        KERNELS,
    ),
    Mutation(
        "own class forgotten in the backward",
        "kernels/backward.py",
        "g = tl.where(near.own[j] == c, own_gradient[j], g)",
        "g = tl.where(near.own[j] == c, g, g)",
        KERNELS,
    ),
    Mutation(
        "own class forgotten among kept ones",
        "kernels/backward.py",
        "value = tl.where(own[j] == c, -sums[j], value)",
        "value = tl.where(own[j] == c, value, value)",
        KERNELS,
    ),
    Mutation(
        "rounding of the mean left in the backward",
        "kernels/backward.py",
        "- means[j] - centre[j]",
        "- means[j]",
        "tests/test_kernels.py -k test_common_offset",
    ),
    Mutation(
        "no ignore_index, kernels",
        "kernels/preparation.py",
        "encoded = tl.where(label == ignore_index, VOID, encoded)",
        "encoded = tl.where(label == ignore_index, encoded, encoded)",
        TRITON,
    ),
    Mutation(
        "variance of one pass",
        "kernels/preparation.py",
        "squares += delta * (x - average)",
        "squares += delta * delta",
        KERNELS,
    ),
    Mutation(
        "arrivals not set to 0",
        "kernels/preparation.py",
        "tl.store(workspace_ptr + pooled_begin, 0.0)",
        "tl.store(workspace_ptr + pooled_begin, 1.0)",
        TRITON,
    ),
    Mutation("all images counted", "kernels/pooling.py", "factor /= tl.load(pooled + 1)", "factor /= N", TRITON),
    Mutation(
        "stride forgotten along a row of the mass",
        "kernels/pooling.py",
        "at_centres(label != VOID, pixels.row, pixels.col, centre_stride, S.STRIDED)",
        "at_centres(label != VOID, pixels.row, pixels.col * centre_stride, centre_stride, S.STRIDED)",
        TRITON,
    ),
    Mutation(
        "a power too many, kernels",
        "kernels/pooling.py",
        "relative = power(tl.div_rn(loss, tl.where(norm == 0, 1.0, norm)), p - 1.0)",
        "relative = power(tl.div_rn(loss, tl.where(norm == 0, 1.0, norm)), p)",
        TRITON,
    ),
    Mutation(
        "no pixel_weight",
        "kernels/pooling.py",
        "omega *= tl.load(pixels.weight, mask=centre, other=0.0).to(tl.float32)",
        "omega *= 1.0",
        TRITON,
    ),
    Mutation(
        "powers not relative to the largest loss",
        "kernels/pooling.py",
        "now = tl.maximum(largest, tl.max(peaks, 1))",
        "now = tl.maximum(largest, 1.0)",
        "tests/test_mutants.py -k 'triton and powers'",
    ),
    Mutation(
        "smoothing forgets the own class's gradient",
        "kernels/pixel_loss.py",
        "own += uniform * (weight_sum - own_weight)",
        "own += 0.0",
        KERNELS,
    ),
    Mutation(
        "logarithm of 1 + x without its digits",
        "kernels/arithmetic.py",
        "f = a * scale + (b * scale - 1.0)",
        "f = (a + b) * scale - 1.0",
        "tests/test_mutants.py -k digits",
    ),
    Mutation(
        "columns of the interpolation one off",
        "kernels/footprint.py",
        "bilinear_weights(axis, col + (j - KW // 2), S.SX",
        "bilinear_weights(axis, col + (j - KW // 2 + 1), S.SX",
        UPSAMPLED,
    ),
    Mutation(
        "average by weight forgotten, upsampled",
        "kernels/footprint.py",
        "xi + (w if S.BY_WEIGHT else 1.0), xi)",
        "xi + 1.0, xi)",
        "tests/test_upsampled_kernels.py -k 'test_every_option and asymmetric'",
    ),
    Mutation(
        "square of 1 / std for its cube",
        "kernels/footprint.py",
        "weights[j] * scales[j] * scales[j] * scales[j]",
        "weights[j] * scales[j] * scales[j]",
        UPSAMPLED,
    ),
    Mutation(
        "own class counted among the others, upsampled",
        "kernels/upsampled.py",
        "counts = own != c",
        "counts = own >= VOID",
        UPSAMPLED,
    ),
    Mutation(
        "corners swapped, on cells",
        "kernels/cells.py",
        "return Corners(total - x - (y - xy), x - xy, y - xy, xy)",
        "return Corners(total - x - (y - xy), y - xy, x - xy, xy)",
        CELLS,
    ),
    Mutation(
        "a cell over the border gives to the other side",
        "kernels/cells.py",
        "tl.where(cell == 0, 1.0, 0.0))",
        "0.0)",
        CELLS,
    ),
    Mutation(
        "the cell before is left out",
        "kernels/cells.py",
        "total += tl.gather(right, tl.maximum(lane - k, 0), 0)",
        "total += right",
        CELLS,
    ),
    Mutation(
        "own class counted among the others, on cells",
        "kernels/cell_loss.py",
        "total[i] + tl.where(is_own, 0.0, terms[i])",
        "total[i] + terms[i]",
        CELLS,
    ),
    Mutation(
        "derivative of a column not times the ratio",
        "kernels/cell_loss.py",
        "first * ratio * derivative",
        "first * derivative",
        CELLS,
    ),
    Mutation(
        "classes that pixels have take the fast way",
        "kernels/cell_loss.py",
        "if some_far | may_hold(bits, c):  # rare",
        "if some_far:  # rare",
        CELLS,
    ),
    Mutation(
        "parts of a cell's other patches forgotten",
        "kernels/cell_loss.py",
        "mask=gives_below & (part_y % S.QY > 0), other=0.0)",
        "mask=gives_below & (part_y < 0), other=0.0)",
        CELLS,
    ),
    Mutation(
        "cells whose logits lie far apart taken for close",
        "kernels/cells.py",
        "highest), highest - lowest <= MOST_SPREAD",
        "highest), highest - lowest <= 1e30",
        "tests/test_cells.py -k large",
    ),
    Mutation(
        "void pixels of cells give NaN",
        "kernels/cell_loss.py",
        "g = tl.where(labelled, g, 0.0)",
        "g = g + 0.0",
        "tests/test_cells.py -k void_hides",
    ),
    Mutation(
        "a NaN does not show in the range of logits",
        "kernels/low_resolution.py",
        "        highest = tl.maximum(highest, x, ",
        "        x = tl.where(x == x, x, 0.0)\n        highest = tl.maximum(highest, x, ",
        "tests/test_cells.py -k void_hides",
    ),
    Mutation(
        "coupling with the row above taken from the own one",
        "kernels/low_resolution.py",
        "row = y - (k // 3 == 0)",
        "row = y",
        UPSAMPLED,
    ),
    Mutation(
        "parts of one lane for those of the tile",
        "kernels/footprint.py",
        "repeat(tl.sum(tl.reshape(values, [S.LANES // G, G]), 1), G)",
        "repeat(tl.max(tl.reshape(values, [S.LANES // G, G]), 1), G)",
        UPSAMPLED,
    ),
    Mutation(
        "bad logits get a finite gradient",
        "kernels/upsampled.py",
        'nan = tl.full(holes.shape, float("nan"), tl.float32)',
        "nan = tl.full(holes.shape, 0.0, tl.float32)",
        "tests/test_upsampled_kernels.py -k non_finite",
    ),
    Mutation(
        "bad logits spread",
        "kernels/low_resolution.py",
        "tl.where(finite, x, 0.0)",
        "x",
        "tests/test_upsampled_kernels.py -k non_finite",
    ),
    Mutation(
        "rounding of the mean left, upsampled",
        "kernels/low_resolution.py",
        "- mean - rest\n",
        "- mean\n",
        "tests/test_mutants.py -k 'triton and offset'",
    ),
    # ---- cpu backend
    Mutation(
        "labels not compared",
        "lal_triton/cpu/window.py",
        "store(taps.weights, (at, t, i), where(same, window.weights[t], zero))",
        "store(taps.weights, (at, t, i), broadcast(window.weights[t], inverse_xi))",
        CPU,
    ),
    Mutation(
        "classes beyond a multiple of three forgotten",
        "lal_triton/cpu/window.py",
        "for a in range(0, classes, 3):",
        "for a in range(0, max(classes - 2, 1), 3):",
        "tests/test_mutants.py -k one_label",
    ),
    Mutation(
        "rows do not wrap in the ring",
        "lal_triton/cpu/window.py",
        "return at - len(ring) if at >= len(ring) else at",
        "return min(at, len(ring) - 1)",
        CPU,
    ),
    Mutation(
        "taps of the upper row for both of a pair",
        "lal_triton/cpu/window.py",
        "second * window.rows * of_taps + i",
        "first * window.rows * of_taps + i",
        CPU,
    ),
    Mutation(
        "saved gradient written over in a graph that is kept",
        "lal_triton/derivatives.py",
        "and not torch._C._autograd._get_current_graph_task_keep_graph()",
        "",
        "tests/test_backends.py -k 'cpu and backward_twice'",
    ),
    Mutation(
        "columns beyond a whole vector forgotten",
        "lal_triton/cpu/sweep.py",
        "(-(-columns // vector) | 1) * vector",
        "max(columns // vector, 1) * vector",
        "tests/test_mutants.py -k one_label",
    ),
    Mutation(
        "element shifted in at the wrong end",
        "lal_triton/cpu/vectors.py",
        "list(range(1, before.lanes + 1))",
        "list(range(before.lanes))",
        "tests/test_cpu.py -k slides",
    ),
    Mutation(
        "slid vector one element early where there is no AVX-512",
        "lal_triton/cpu/vectors.py",
        "types.intp, 1 - before.lanes",
        "types.intp, -before.lanes",
        "tests/test_cpu.py -k slides",
    ),
    Mutation(
        "no huge pages",
        "lal_triton/cpu/memory.py",
        "size < LARGE_BYTES",
        "size > LARGE_BYTES",
        "tests/test_cpu.py -k huge",
    ),
    Mutation("mean not divided, cpu", "lal_triton/cpu/backend.py", " / total.numpy()", "", CPU),
    Mutation(
        "copy of a band without the last row of its pairs",
        "lal_triton/cpu/backend.py",
        "bands.edges[band + 1] + halo + 1",
        "bands.edges[band + 1] + halo",
        "tests/test_cpu.py -k beyond",
    ),
    Mutation(
        "mean of weights that overflow is 0",
        "lal_triton/cpu/backend.py",
        "norms = norms * (total / total)",
        "norms = norms * 1",
        "tests/test_cpu.py -k overflows",
    ),
    Mutation(
        "1 / xi skipped in the gradient",
        "lal_triton/cpu/sweep.py",
        "coefficient[i] *= inverse_xi[n, i]",
        "coefficient[i] *= 1",
        CPU,
    ),
    Mutation(
        "average by weight forgotten",
        "lal_triton/cpu/backend.py",
        'counted = weights if options.average == "weight" else',
        "counted = weights if False else",
        CPU,
    ),
    Mutation(
        "window not mirrored, cpu",
        "lal_triton/cpu/backend.py",
        "mirrored = weights[::-1].copy()",
        "mirrored = weights.copy()",
        CPU,
    ),
    Mutation(
        "own class forgotten",
        "lal_triton/cpu/pixel_loss.py",
        "where(label == c, broadcast(0, f) - own, load(f, (c, i), f) * scale)",
        "load(f, (c, i), f) * scale",
        CPU,
    ),
    Mutation(
        "focal slope without its second term, cpu",
        "lal_triton/cpu/pixel_loss.py",
        "power * (one + gamma * (one - one_minus_p) * ratio)",
        "power",
        CPU,
    ),
    Mutation(
        "maximum not subtracted, cpu", "lal_triton/cpu/pixel_loss.py", "if not settings.bounded:", "if False:", CPU
    ),
    Mutation(
        "loss of certain pixels rounded to 0",
        "lal_triton/cpu/elementary.py",
        "f = a * scale + (b * scale - _ONE32)",
        "f = (a + b) * scale - _ONE32",
        "tests/test_mutants.py -k certain",
    ),
    Mutation("a power too many", "lal_triton/cpu/powers.py", "** (p - real(1)) if", "** p if", CPU),
    Mutation("slopes of another scale added", "lal_triton/cpu/sweep.py", "shrink(rings.slopes, change)", "pass", CPU),
    Mutation("scale of the last row for all", "lal_triton/cpu/sweep.py", "scales[o] = scale", "scales[:] = scale", CPU),
    Mutation(
        "sum of powers of another scale",
        "lal_triton/cpu/sweep.py",
        "total *= np.float64(change) ** settings.p",
        "pass",
        CPU,
    ),
    Mutation(
        "what stands at void is read",
        "lal_triton/cpu/logits.py",
        "+ i)\n            for i in range(width):\n                out[i] = row[i] if labels[i] >= 0 else zero",
        "+ i)\n            for i in range(width):\n                out[i] = row[i]",
        "tests/test_non_finite.py -k cpu",
    ),
    Mutation(
        "what is interpolated at void is taken",
        "lal_triton/cpu/logits.py",
        "where(inside, mixed, broadcast(0, z))",
        "mixed",
        "tests/test_non_finite.py -k cpu",
    ),
    Mutation(
        "rows of the interpolation swapped",
        "lal_triton/cpu/logits.py",
        "rest * load(below, (c, i), z) + fraction * load(above, (c, i), z)",
        "fraction * load(below, (c, i), z) + rest * load(above, (c, i), z)",
        UPSAMPLING,
    ),
    Mutation(
        "gradient of the upper column dropped",
        "lal_triton/cpu/logits.py",
        "here, there = carried, zero",
        "here, there = zero, zero",
        UPSAMPLING,
    ),
    Mutation(
        "gradient of the last sums dropped",
        "lal_triton/cpu/logits.py",
        "between.passed[0] + len(gradient), gradient)",
        "between.passed[0] + len(gradient) - 1, gradient)",
        UPSAMPLING,
    ),
    Mutation(
        "gradient of the variance dropped",
        "lal_triton/cpu/score.py",
        " - load(z, (c, border + i), dz) * product))",
        "))",
        CPU,
    ),
    Mutation(
        "large logits not scaled",
        "lal_triton/cpu/score.py",
        "if LARGE < largest < np.inf:",
        "if False:",
        "tests/test_non_finite.py -k cpu",
    ),
    Mutation(
        "scales of bands not compared",
        "lal_triton/cpu/backend.py",
        "share = (scales[image, band] / largest[image]) ** (p - 1)",
        "share = 1.0",
        UPSAMPLING,
    ),
    Mutation(
        "last band left out",
        "lal_triton/cpu/bands.py",
        "while (number := next(numbers)) < len(items):",
        "while (number := next(numbers)) < len(items) - 1:",
        CPU,
    ),
    Mutation(
        "a result for each number of threads",
        "lal_triton/cpu/bands.py",
        "self.count = max(1, round(height / BAND_ROWS))",
        "self.count = max(1, round(height / BAND_ROWS)) * torch.get_num_threads()",
        "tests/test_cpu.py -k threads",
    ),
    Mutation(
        "border of the interpolation one pixel off",
        "lal_triton/bilinear.py",
        "return (2 * pixel + 1) * low - high, 2 * low",
        "return (2 * pixel + 1) * low, 2 * low",
        UPSAMPLING,
    ),
    Mutation(
        "align_corners ignored",
        "lal_triton/bilinear.py",
        "if align_corners:\n        return pixel",
        "if False:\n        return pixel",
        UPSAMPLING,
    ),
    Mutation(
        "fraction kept at the last pixel",
        "lal_triton/bilinear.py",
        "fraction[lower == low - 1] = 0  #",
        "fraction[lower == low - 1] += 0  #",
        UPSAMPLING,
    ),
    # ---- around the backends
    Mutation(
        "images without a valid pixel counted",
        "lal_triton/pooling.py",
        "or_one(mass) ** (1 / p), mass > 0, process_group)",
        "or_one(mass) ** (1 / p), mass >= 0, process_group)",
        "tests/test_reference.py",
    ),
    Mutation(
        "pooled over this rank only",
        "lal_triton/pooling.py",
        "every[process_group.rank()] = local",
        "every = [local] * process_group.size()",
        RANKS,
    ),
    Mutation(
        "max-pooling without its bound",
        "lal_triton/max_pooling.py",
        "torch.where(powers > level, 1, ((powers - level) / norm).exp())",
        "((powers - level) / norm).exp()",
        "tests/test_max_pooling.py -k 'optimal or limits'",
    ),
    Mutation(
        "no ignore_index", "lal_triton/cpu/targets.py", "VOID if label == ignore_index", "VOID if label == -7", CPU
    ),
    Mutation(
        "pixel weights forgotten",
        "lal_triton/cpu/targets.py",
        "value[i] * factor[i] if",
        "value[i] if",
        "tests/test_reference.py -k 'equations and pixel_weight'",  # of a CPU's reference this makes the weights, too
    ),
    Mutation(
        "rows scaled by the first one's factor",
        "lal_triton/cpu/scaling.py",
        "factor[(first + number) % len(factor)]",
        "factor[0]",
        CPU,
    ),
    Mutation(
        "labels compared before widening",
        "lal_triton/validation.py",
        "labels = target.to(torch.int64)  # before comparing: uint8(156) == -100 in torch",
        "labels = target",
        "tests/test_validation.py",
    ),
    Mutation(
        "negative weights let pass",
        "lal_triton/validation.py",
        "bad = ~(torch.isfinite(weight) & (weight >= 0))",
        "bad = ~torch.isfinite(weight)",
        "tests/test_validation.py",
    ),
    Mutation(
        "any truth for a boolean",
        "lal_triton/validation.py",
        "    if not isinstance(value, (bool, np.bool_)):\n",
        "    if False:\n",
        "tests/test_validation.py",
    ),
    Mutation(
        "weights with a gradient let pass",
        "lal_triton/validation.py",
        "if isinstance(value, torch.Tensor) and is_differentiable(value):",
        "if False:",
        "tests/test_derivatives.py -k 'gradient_are_refused'",
    ),
    Mutation(
        "a step for logits of any strides",
        "lal_triton/steps.py",
        "        logits.stride(),\n",
        "",
        "tests/test_steps.py",
    ),
    Mutation(
        "weights with a gradient let pass at the second call",
        "lal_triton/steps.py",
        "weight.dtype, weight.device, weight.requires_grad and torch.is_grad_enabled()",
        "weight.dtype, weight.device",
        "tests/test_derivatives.py -k 'gradient_are_refused'",
    ),
    Mutation(
        "second derivatives not refused",
        "lal_triton/derivatives.py",
        "    return _FirstDerivative.apply(value, *(source for source in sources if source is not None))\n",
        "    return value\n",
        "tests/test_derivatives.py -k 'second_derivatives'",
    ),
    Mutation(
        "forward mode by the other backends",
        "lal_triton/dispatch.py",
        "    if validation.has_tangent(logits):\n",
        "    if False:\n",
        "tests/test_derivatives.py -k forward_mode",
    ),
    Mutation(
        "an empty batch to the kernels",
        "lal_triton/dispatch.py",
        "    if len(logits) == 0:\n",
        "    if False:\n",
        "tests/test_empty_batch.py",
    ),
    Mutation(
        "a subclass passed on",
        "lal_triton/subclasses.py",
        "    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:\n",
        "    if False:\n",
        "tests/test_subclasses.py",
    ),
    Mutation(
        "1 / xi skipped, reference",
        "lal_triton/reference.py",
        "return merged / torch.where(valid, xi, 1)[:, None]",
        "return merged",
        "tests/test_reference.py",
    ),
    Mutation(
        "centres of the wrong sign",
        "lal_triton/center.py",
        "(-gradient * sums).to(centers.dtype)",
        "(gradient * sums).to(centers.dtype)",
        "tests/test_derivatives.py -k centers",
    ),
    Mutation(
        "powers not relative to the largest loss, torch",
        "lal_triton/pooling.py",
        "scale = torch.where(largest == 0, 1, largest)",
        "scale = torch.ones_like(largest)",
        "tests/test_backends.py -k 'cpu and (powers or tiny)'",
    ),
    Mutation(
        "no root of the batch's mass",
        "lal_triton/pooling.py",
        "norm / or_one(total) ** (1 / p)",
        "norm / or_one(total)",
        "tests/test_reference.py",
    ),
    Mutation(
        "mass of this rank only",
        "lal_triton/pooling.py",
        "_norm_of(of_ranks[:, 0], p), of_ranks[:, 1].sum()",
        "_norm_of(of_ranks[:, 0], p), total",
        RANKS,
    ),
    Mutation(
        "max-pooling without its ratio",
        "lal_triton/max_pooling.py",
        " * ratio ** (-1 / norm) / or_one",
        " / or_one",
        "tests/test_max_pooling.py -k 'optimal or limits'",
    ),
    Mutation(
        "images without a valid pixel counted, max-pooling",
        "lal_triton/evaluation.py",
        "mean_over_images(maxima, mass > 0,",
        "mean_over_images(maxima, mass >= 0,",
        "tests/test_max_pooling.py -k valid",
    ),
    Mutation(
        "power of Minkowski for every reduction",
        "lal_triton/options.py",
        'p=p if reduction == "minkowski" else 1.0',
        "p=p",
        "tests/test_reference.py",
    ),
    Mutation(
        "stride off by one",
        "lal_triton/labels.py",
        "torch.arange(labels.shape[2], device=labels.device) % stride == 0",
        "torch.arange(labels.shape[2], device=labels.device) % stride == 1",
        "tests/test_reference.py",
    ),
    Mutation(
        "even windows let pass",
        "lal_triton/validation.py",
        "height % 2 == 0 or width % 2 == 0",
        "width % 2 == 0",
        "tests/test_mutants.py -k even",
    ),
    Mutation(
        "window without a centre let pass",
        "lal_triton/validation.py",
        "if weights[len(weights) // 2] <= 0:",
        "if weights[len(weights) // 2] < 0:",
        "tests/test_validation.py",
    ),
    Mutation(
        "gradient not multiplied by grad_output, cpu",
        "lal_triton/cpu/op.py",
        "factors = factor * gradient[:, None]",
        "factors = factor",
        "tests/test_reference.py tests/test_backends.py -k 'cpu and (every_option or derivative)'",
    ),
    Mutation(
        "a power too many in the norms",
        "lal_triton/cpu/backend.py",
        "(scale / torch.where(norms == 0, 1, norms)[:, None]) ** (self._p - 1)",
        "(scale / torch.where(norms == 0, 1, norms)[:, None]) ** self._p",
        CPU,
    ),
    Mutation(
        "one element for all of a vmap",
        "lal_triton/derivatives.py",
        "a.select(dim, i)",
        "a.select(dim, 0)",
        "tests/test_derivatives.py -k vmap",
    ),
    Mutation(
        "float64 to the kernels",
        "lal_triton/dispatch.py",
        "    if dtype == torch.float64:\n        raise",
        "    if False:\n        raise",
        "tests/test_validation.py -k 'triton or bad'",
    ),
    Mutation(
        "group of a mesh forgotten",
        "lal_triton/subclasses.py",
        "mesh.get_group(sharded[0]) if sharded else None",
        "None",
        RANKS + " -k sharded",
    ),
    Mutation(
        "smoothing on top of the whole cost",
        "lal_triton/reference.py",
        "(1 - options.label_smoothing) * weight[own] * nll",
        "weight[own] * nll",
        "tests/test_reference.py",
    ),
    Mutation(
        "mean over void features, too",
        "lal_triton/center.py",
        "(labels != VOID).sum().to(dtype)",
        "torch.ones_like(labels).sum().to(dtype)",
        "tests/test_center.py -k 'void or gradients'",
    ),
    Mutation(
        "alpha by class forgotten",
        "lal_triton/evaluation.py",
        "weight) * alpha[labels.clamp(min=0).long()]",
        "weight)",
        "tests/test_focal.py -k 'alpha and cpu'",
    ),
    Mutation(
        "no pixel of rounding between sizes",
        "lal_triton/validation.py",
        "if not _are_of_one_stride(size, labels) and _are_of_one_stride(size[::-1], labels):",
        "if labels[0] * size[1] != labels[1] * size[0] and _are_of_one_stride(size[::-1], labels):",
        "tests/test_validation.py -k sizes",
    ),
    Mutation(
        "a group read too early is taken",
        "lal_triton/process_groups.py",
        "dist.get_world_size() > 1:",
        "dist.get_world_size() < 1:",
        RANKS + " -k first_forward",
    ),
    Mutation(
        "world of one rank",
        "lal_triton/process_groups.py",
        "process_group == WORLD and dist.is_available()",
        "False",
        RANKS + " -k 'name or first_forward'",
    ),
    Mutation(
        "void label of a call forgotten",
        "lal_triton/modules.py",
        "self.request_with(ignore_index=ignore_index, reduction=reduction)",
        "self.request_with(reduction=reduction)",
        "tests/test_modules.py -k one_call",
    ),
]


def copy_tree(folder: Path) -> None:
    """The tree, laid out so that PYTHONPATH goes before an editable installation."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("kernels", "benchmarks", "plots"):
        (folder / "lal_triton" / name).symlink_to(folder / name)


def run_tests(tests: str, mutation: Mutation | None) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_tree(folder)
        if mutation is not None:
            path = folder / mutation.file
            path.write_text(path.read_text().replace(mutation.old, mutation.new))
        environment = {**os.environ, "PYTHONPATH": scratch, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
        if mutation is not None and mutation.file.startswith("lal_triton/cpu/"):
            environment["LAL_TRITON_CACHE_DIR"] = str(folder / "cache")  # no use to anybody else
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *shlex.split(tests)]
        start = time.monotonic()
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return Outcome("a timeout", time.monotonic() - start)
        seconds = time.monotonic() - start
        if done.returncode == 0:
            return Outcome(None, seconds)
        if done.returncode < 0:
            return Outcome(f"a crash (signal {-done.returncode})", seconds)
        failed = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), None)
        if done.returncode != 1 or failed is None:  # nothing was collected, or the patch is no Python
            raise RuntimeError(
                f"pytest {tests} exited with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}"
            )
        return Outcome("`" + failed.split(" ", 1)[1].split("::")[-1].split("[")[0].split(" - ")[0] + "`", seconds)


def check_patches(mutations: list[Mutation]) -> None:
    names = [mutation.name for mutation in mutations]
    for mutation in mutations:
        if names.count(mutation.name) > 1:
            print(f"{mutation.name}: {names.count(mutation.name)} mutations of this name, expected 1", file=sys.stderr)
            sys.exit(2)
        count = (ROOT / mutation.file).read_text().count(mutation.old)
        if count != 1:
            print(f"{mutation.name}: {mutation.file} has {count} of {mutation.old!r}, expected 1", file=sys.stderr)
            sys.exit(2)


def run_all(mutations: list[Mutation]) -> Iterator[tuple[Mutation, Outcome]]:
    """In their order, after the tests passed without a mutation."""
    with ThreadPoolExecutor(WORKERS) as pool:
        selections = sorted({mutation.tests for mutation in mutations})
        for tests, outcome in zip(selections, pool.map(run_tests, selections, [None] * len(selections)), strict=True):
            if outcome.caught_by:
                print(f"{tests}: {outcome.caught_by} fails without a mutation", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                sys.exit(2)
        yield from zip(
            mutations, pool.map(run_tests, [mutation.tests for mutation in mutations], mutations), strict=True
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="NAME", help="run one mutation")
    parser.add_argument("--write", action="store_true", help=f"keep the table in tests/{TABLE.name}")
    arguments = parser.parse_args()
    if arguments.only and arguments.write:
        parser.error("--write is given with --only, expected all mutations")
    check_patches(MUTATIONS)
    mutations = [mutation for mutation in MUTATIONS if arguments.only in (None, mutation.name)]
    if not mutations:
        parser.error(f"--only is {arguments.only!r}, expected one of {', '.join(m.name for m in MUTATIONS)}")
    lines = ["| mutation | file | caught by | seconds |", "| --- | --- | --- | ---: |"]
    print("\n".join(lines), flush=True)
    start = time.monotonic()
    survived = 0
    for mutation, (caught_by, seconds) in run_all(mutations):
        survived += caught_by is None
        lines.append(f"| {mutation.name} | {mutation.file} | {caught_by or '**SURVIVED**'} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    summary = f"{len(mutations) - survived} of {len(mutations)} mutations caught, {survived} survived"
    print(f"{summary}; {time.monotonic() - start:.0f} s")
    if arguments.write:
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "numpy"))
        TABLE.write_text(
            f"# Mutations\n\n`make mutations` breaks the package in one place at a time and runs the tests that should "
            f"notice,\nwith interpreted kernels. Seconds are those until the first failure.\n\n"
            f"{summary} ({datetime.date.today()}; Python {platform.python_version()}, {versions}).\n\n"
            + "\n".join(lines)
            + "\n"
        )
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
