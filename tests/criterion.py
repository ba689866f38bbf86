"""The accuracy that every backend owes: that of eager float32 PyTorch, and one rounding to the output's dtype."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

# Errors are samples of rounding noise: sums in another order may err twice as much, and where few numbers are compared
# the sample may be zero by luck, while no evaluation does without a few float32 roundings.
NOISE = 2
ROUNDINGS = 4 * 2**-24
MOST_NOISE = 2**-12  # half of float32's digits; an eager evaluation that overflows, or is wrong, allows nothing


def relative_error(actual: torch.Tensor, oracle: torch.Tensor) -> float:
    """|actual - oracle| / |oracle| in the Euclidean norm (absolute where the oracle is 0)."""
    norm = torch.linalg.vector_norm(oracle.double())
    difference = torch.linalg.vector_norm(actual.double() - oracle.double())
    return float(difference / norm if norm > 0 else difference)


class Comparison(NamedTuple):
    """A result, eager float32 evaluations of it that differ in rounding only, and the float64 oracle.

    Triton's interpreter truncates float32 to bfloat16 instead of rounding: `truncated` allows for it.
    """

    actual: torch.Tensor
    eager: torch.Tensor | Sequence[torch.Tensor]
    oracle: torch.Tensor
    truncated: bool = False

    def errors(self) -> tuple[float, float]:
        """The relative error, and what is allowed: that of the worst eager evaluation, up to one unit roundoff.

        NaNs must stand at the oracle's places; they are left out of the norms.
        """
        samples = [self.eager] if isinstance(self.eager, torch.Tensor) else self.eager
        actual, oracle = self.actual.detach().cpu(), self.oracle.detach().cpu()
        assert oracle.dtype == torch.float64
        assert actual.shape == oracle.shape
        defined = ~oracle.isnan()
        assert torch.equal(~actual.isnan(), defined), "NaNs are elsewhere than the oracle's"
        error = relative_error(actual[defined], oracle[defined])
        noise = max(relative_error(sample.detach().cpu()[defined], oracle[defined]) for sample in samples)
        assert noise <= MOST_NOISE, f"eager evaluation has a relative error of {noise:.3g}: it says nothing of `actual`"
        return error, NOISE * noise + ROUNDINGS + torch.finfo(actual.dtype).eps / (1 if self.truncated else 2)


def assert_as_accurate(
    actual: torch.Tensor,
    eager: torch.Tensor | Sequence[torch.Tensor],
    oracle: torch.Tensor,
    *,
    truncated: bool = False,
) -> None:
    """`actual` is as close to the float64 `oracle` as eager float32 evaluations are."""
    error, allowed = Comparison(actual, eager, oracle, truncated).errors()
    assert error <= allowed, f"relative error {error:.3g}, allowed {allowed:.3g}"
