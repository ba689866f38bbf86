# mypy: ignore-errors
"""The loss (Eq. 3-4) of the pixels of a row of merged logits `f` `[C, W]`, and its gradient."""

from lal_triton.cpu.compiling import inlined
from lal_triton.cpu.elementary import exp, log_of_sum
from lal_triton.cpu.vectors import broadcast, load, store, where

PLANES = 7  # one row of each, `[PLANES, W]`, is what passes from one function here to the next
OWN, OTHERS, ODDS, LOSS, SLOPE, COEFFICIENT, LINEAR = range(PLANES)


@inlined
def exponentiate(f, i, labels, border, weight, settings, planes):
    """Columns i to i + lanes of f become exp(f_c - shift), with 0 at the label's class; fills four of the planes.

    The shift is the label's own logit where `bounded`, else the largest. own: f_y - shift; others: the sum of what f
    becomes; odds: exp(own); linear, with label smoothing: sum_c weight_c (f_c - shift).
    """
    classes = len(f)
    label = load(labels, border + i, f)
    own = load(f, (0, i), f)
    for c in range(1, classes):
        own = where(label == c, load(f, (c, i), f), own)
    shift = own
    if not settings.bounded:
        shift = load(f, (0, i), f)
        for c in range(1, classes):
            row = load(f, (c, i), f)
            shift = where((row > shift) | (row != row), row, shift)
    if settings.smoothing > 0:
        linear = broadcast(0, f)
        for c in range(classes):
            linear += weight[c] * (load(f, (c, i), f) - shift)
        store(planes, (LINEAR, i), linear)
    others = broadcast(0, f)
    for c in range(classes):
        row = where(label == c, 0, exp(load(f, (c, i), f) - shift))
        store(f, (c, i), row)
        others += row
    own -= shift
    store(planes, (OWN, i), own)
    store(planes, (OTHERS, i), others)
    store(planes, (ODDS, i), exp(own))


@inlined
def clamp(x, low):
    """x, but `low` where it is smaller; NaN stays."""
    return low if x < low else x


@inlined
def pixel_loss(labels, weight, whole, settings, planes):
    """The losses and their slopes, dL/df = slope (softmax - onehot) + smoothing / C (whole softmax - weight).

    labels: `[W]`; weight: `[C]`, with the sum `whole`.
    """
    real = planes.dtype.type
    zero, one = real(0), real(1)
    smoothing = settings.smoothing
    own, others, odds, losses, slope = planes[OWN], planes[OTHERS], planes[ODDS], planes[LOSS], planes[SLOPE]
    for i in range(len(losses)):
        losses[i] = clamp(log_of_sum(others[i], odds[i]) - own[i], zero)
    if settings.focal:
        alpha, gamma = settings.alpha, settings.gamma
        for i in range(len(losses)):
            nll = losses[i]
            one_minus_p = others[i] / (others[i] + odds[i])
            ratio = nll / one_minus_p if one_minus_p > zero else one
            power = alpha * one_minus_p**gamma
            losses[i] = power * nll
            slope[i] = power * (one + gamma * (one - one_minus_p) * ratio)
        return
    for i in range(len(labels)):
        slope[i] = (one - smoothing) * weight[max(labels[i], 0)]
    if smoothing > zero:
        share, linear = smoothing / real(len(weight)), planes[LINEAR]
        for i in range(len(losses)):
            losses[i] = clamp(slope[i] * losses[i] + share * (whole * (losses[i] + own[i]) - linear[i]), zero)
    else:
        for i in range(len(losses)):
            losses[i] *= slope[i]


@inlined
def sum_of(weight):
    whole = weight.dtype.type(0)
    for w in weight:
        whole += w
    return whole


@inlined
def differentiate(f, i, labels, border, weight, smoothing, whole, planes, g):
    """The gradient of coefficient x L by the merged logits, to `g` `[C, border + W + border]`, after `pixel_loss`.

    whole: the sum of the class weights.
    """
    label = load(labels, border + i, f)
    others, coefficient = load(planes, (OTHERS, i), f), load(planes, (COEFFICIENT, i), f)
    share = smoothing / f.dtype.type(len(f))
    scale = coefficient * (load(planes, (SLOPE, i), f) + share * whole) / (others + load(planes, (ODDS, i), f))
    own = others * scale
    for c in range(len(f)):
        slope = where(label == c, broadcast(0, f) - own, load(f, (c, i), f) * scale)
        if smoothing > 0:
            slope += where(label == c, share * (whole - weight[c]), broadcast(0, f) - share * weight[c]) * coefficient
        store(g, (c, border + i), slope)
