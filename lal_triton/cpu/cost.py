# mypy: ignore-errors
"""The local cost (Eq. 3-4) of a row of merged logits `f` `[C, W]`, and its gradient."""

from lal_triton.cpu.compiling import inlined
from lal_triton.cpu.elementary import exp, log_of_sum

PLANES = 8  # one row of each, `[PLANES, W]`, is what passes from the cost to its gradient
OWN, SHIFT, OTHERS, TOTAL, LOSS, SLOPE, COEFFICIENT, LINEAR = range(PLANES)


@inlined
def clamp(x, low):
    """x, but `low` where it is smaller; NaN stays."""
    return low if x < low else x


@inlined
def cost(f, labels, weight, settings, planes):
    """Fills `planes`; `f` becomes exp(f_c - shift), with 0 at the label's class.

    slope: dL/df = slope (softmax - onehot) + smoothing / C (sum(weight) softmax - weight). `bounded`: the label's own
    logit is the shift, else the largest is.
    """
    classes, width = f.shape
    real = f.dtype.type
    zero, one = real(0), real(1)
    smoothing = settings.smoothing
    own, shift, others, total = planes[OWN], planes[SHIFT], planes[OTHERS], planes[TOTAL]
    losses, slope, linear = planes[LOSS], planes[SLOPE], planes[LINEAR]
    for i in range(width):
        own[i] = f[max(labels[i], 0), i]
    if settings.bounded:
        for i in range(width):
            shift[i] = own[i]
    else:
        for i in range(width):
            shift[i] = f[0, i]
        for c in range(1, classes):
            row = f[c]
            for i in range(width):
                shift[i] = row[i] if row[i] > shift[i] or row[i] != row[i] else shift[i]
    if smoothing > zero:
        linear[:] = 0
        for c in range(classes):
            row, w = f[c], weight[c]
            for i in range(width):
                linear[i] += w * (row[i] - shift[i])
    for i in range(width):
        own[i] -= shift[i]
    for c in range(classes):
        row = f[c]
        for i in range(width):
            row[i] = exp(row[i] - shift[i])
    for i in range(width):
        f[max(labels[i], 0), i] = zero
    others[:] = 0
    for c in range(classes):
        row = f[c]
        for i in range(width):
            others[i] += row[i]
    for i in range(width):
        odds = exp(own[i])
        total[i] = others[i] + odds
        losses[i] = clamp(log_of_sum(others[i], odds) - own[i], zero)
    if settings.focal:
        alpha, gamma = settings.alpha, settings.gamma
        for i in range(width):
            nll = losses[i]
            miss = others[i] / total[i]
            ratio = nll / miss if miss > zero else one
            power = alpha * miss**gamma
            losses[i] = power * nll
            slope[i] = power * (one + gamma * (one - miss) * ratio)
        return
    for i in range(width):
        slope[i] = (one - smoothing) * weight[max(labels[i], 0)]
    if smoothing > zero:
        share = smoothing / real(classes)
        whole = zero
        for c in range(classes):
            whole += weight[c]
        for i in range(width):
            losses[i] = clamp(slope[i] * losses[i] + share * (whole * (losses[i] + own[i]) - linear[i]), zero)
    else:
        for i in range(width):
            losses[i] *= slope[i]


@inlined
def cost_gradient(f, labels, weight, smoothing, planes, g, border):
    """The gradient of coefficient x L by the merged logits, to `g` `[C, border + W + border]`, after `cost`."""
    classes, width = f.shape
    real = f.dtype.type
    zero = real(0)
    others, total, slope, coefficient = planes[OTHERS], planes[TOTAL], planes[SLOPE], planes[COEFFICIENT]
    scale = planes[SHIFT]  # which is free by now
    whole = zero
    if smoothing > zero:
        for c in range(classes):
            whole += weight[c]
    share = smoothing / real(classes)
    for i in range(width):
        scale[i] = coefficient[i] * (slope[i] + share * whole) / total[i]
    for c in range(classes):
        row, out = f[c], g[c, border : border + width]
        for i in range(width):
            out[i] = row[i] * scale[i]
    if smoothing > zero:
        for c in range(classes):
            out, w = g[c, border : border + width], share * weight[c]
            for i in range(width):
                out[i] -= coefficient[i] * w
    for i in range(width):
        own = max(labels[i], 0)
        g[own, border + i] = coefficient[i] * share * (whole - weight[own]) - others[i] * scale[i]
