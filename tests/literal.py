"""The loss as a loop-by-loop transcription of the equations, in Python floats; no code is shared with the package."""

import math


def window_weight(window, i, j):
    if window == "chessboard":
        return 2.0 ** (1 - max(abs(i), abs(j)))
    if window == "uniform":
        return 1.0
    return float(window[i + len(window) // 2][j + len(window[0]) // 2])


def standard_score(x, eps):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return [(v - mean) / math.sqrt(variance + eps) for v in x]


def merged_logits(logits, target, n, row, column, kernel_size, window, average, normalize, eps, ignore_index):
    _, classes, height, width = len(logits), len(logits[0]), len(logits[0][0]), len(logits[0][0][0])
    total, xi = [0.0] * classes, 0.0
    for i in range(-(kernel_size[0] // 2), kernel_size[0] // 2 + 1):
        for j in range(-(kernel_size[1] // 2), kernel_size[1] // 2 + 1):
            r, c = row + i, column + j
            if not (0 <= r < height and 0 <= c < width):
                continue
            if target[n][r][c] == ignore_index or target[n][r][c] != target[n][row][column]:
                continue
            x = [logits[n][k][r][c] for k in range(classes)]
            z = standard_score(x, eps) if normalize else x
            w = window_weight(window, i, j)
            total = [t + w * v for t, v in zip(total, z, strict=True)]
            xi += 1 if average == "count" else w
    return [t / xi for t in total]


def pixel_cost(f, label, cost, weight, smoothing, alpha, gamma):
    top = max(f)
    log_total = top + math.log(sum(math.exp(v - top) for v in f))
    log_p = [v - log_total for v in f]
    if cost == "focal":
        q = math.exp(log_p[label])
        return alpha * (1 - q) ** gamma * -log_p[label]
    smooth = sum(w * lp for w, lp in zip(weight, log_p, strict=True))
    return -(1 - smoothing) * weight[label] * log_p[label] - smoothing / len(f) * smooth


def locally_adaptive_loss(
    logits,
    target,
    *,
    kernel_size=5,
    window="chessboard",
    stride=1,
    average="count",
    normalize=True,
    eps=1e-5,
    cost="cross_entropy",
    focal_alpha=0.25,
    focal_gamma=2.0,
    weight=None,
    pixel_weight=None,
    label_smoothing=0.0,
    reduction="minkowski",
    p=3.0,
    pool="image",
    ignore_index=255,
):
    """Nested lists in, a float or (with reduction="none") a nested list out."""
    classes, height, width = len(logits[0]), len(logits[0][0]), len(logits[0][0][0])
    size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    class_weight = weight if weight is not None else [1.0] * classes
    maps, pixels = [], []
    for n in range(len(logits)):
        pixels.append([])
        maps.append([])
        for row in range(0, height, stride):
            maps[n].append([])
            for column in range(0, width, stride):
                label = target[n][row][column]
                if label == ignore_index:
                    maps[n][-1].append(0.0)
                    continue
                f = merged_logits(logits, target, n, row, column, size, window, average, normalize, eps, ignore_index)
                by_pixel = pixel_weight[n][row][column] if pixel_weight is not None else 1.0
                plain = pixel_cost(f, label, cost, [1.0] * classes, label_smoothing, focal_alpha, focal_gamma)
                weighted = (
                    class_weight[label] * plain
                    if cost == "focal"
                    else pixel_cost(f, label, cost, class_weight, label_smoothing, focal_alpha, focal_gamma)
                )
                maps[n][-1].append(by_pixel * weighted)
                pixels[n].append((plain, by_pixel * weighted, by_pixel * class_weight[label]))

    if reduction == "none":
        return maps
    everything = [pixel for image in pixels for pixel in image]
    mass = sum(omega for _, _, omega in everything)
    if reduction == "sum":
        return sum(weighted for _, weighted, _ in everything)
    if reduction == "mean":
        return sum(weighted for _, weighted, _ in everything) / mass if mass > 0 else 0.0

    def power_mean(chosen):
        total = sum(omega for _, _, omega in chosen)
        return (sum(omega * plain**p for plain, _, omega in chosen) / total) ** (1 / p)

    groups = [everything] if pool == "batch" else pixels
    groups = [group for group in groups if sum(omega for _, _, omega in group) > 0]
    return sum(power_mean(group) for group in groups) / len(groups) if groups else 0.0
