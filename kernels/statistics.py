# mypy: ignore-errors
"""Mean and reciprocal standard deviation over the classes, per pixel."""

import triton.language as tl

from lal_triton.kernels.strips import kernel


@kernel
def moments_fwd_kernel(
    mean,
    rstd,
    logits,
    H,
    W,
    C,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    eps,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(H.to(tl.int64) * W, BLOCK)
    n = tl.program_id(0) // blocks
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < H.to(tl.int64) * W
    x_ptr = logits + n * stride_n + pixel // W * stride_h + pixel % W * stride_w
    # Welford's recurrence, of the differences from one logit: a common offset would cost the variance its digits
    first = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
    average = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for c in range(C):
        x = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32) - first
        delta = x - average
        average += delta * (1.0 / (c + 1))
        squares += delta * (x - average)
        x_ptr += stride_c
    pixel += n * H * W
    tl.store(mean + pixel, first + average, mask=inside)
    tl.store(rstd + pixel, tl.div_rn(1.0, tl.sqrt_rn(squares / C + eps)), mask=inside)
