"""How long cases take: what is said before they run, and the time that is left.

The figures are of `lal-triton bench` with and without `--quick` on 2026-11-28, on two cores of an AMD EPYC that other
processes used as well (load 3 to 10).
"""

from lal_triton.benchmarks.capacity import reason_to_skip
from lal_triton.benchmarks.cases import Case, Settings
from lal_triton.benchmarks.timing import Effort

AROUND = 0.1  # seconds of a case besides its steps and its compiling
COMPILING = 20.0  # seconds of torch.compile
COMPILING_SHIFT_ADD = 2.0  # seconds for each neighbour
UNTIMED = 3  # steps before those that are timed
STEP = 6.0  # nanoseconds for each pixel and class
STEPS = {"copy": 1.0, "lal": 10.0}
STEPS_PER_NEIGHBOUR = {"shift_add": 15.0, "unfold": 32.0}


def expected_seconds(case: Case, settings: Settings, effort: Effort) -> float:
    """0 for what is left out. On a GPU the steps count nothing: their repeats take the time of the effort."""
    if reason_to_skip(case, settings.memory_limit):
        return 0.0
    neighbours = (case.kernel_size or 1) ** 2
    compiling = COMPILING_SHIFT_ADD * neighbours if case.name == "shift_add" else COMPILING
    if case.name in STEPS_PER_NEIGHBOUR:
        nanoseconds = STEPS_PER_NEIGHBOUR[case.name] * neighbours
    else:
        nanoseconds = STEPS.get(case.name, STEP)
    elements = case.full_bytes // case.dtype.itemsize
    step = 0.0 if settings.device.type == "cuda" else 1e-9 * nanoseconds * elements
    return AROUND + compiling * case.compiled + effort.seconds + (UNTIMED + effort.fewest) * step
