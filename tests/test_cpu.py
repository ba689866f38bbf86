"""The compiled CPU backend as a piece of software: threads, processes, its cache, and what runs where it cannot."""

import mmap
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import cpu_only, make_problem, value_and_gradient

from lal_triton import LocallyAdaptiveLoss, dispatch, steps
from lal_triton.benchmarks.memory import allocations
from lal_triton.functional import cross_entropy, locally_adaptive_loss

pytestmark = cpu_only
OPTIONS = {"lal": {}, "ce": {"kernel_size": 1, "normalize": False, "reduction": "mean"}, "map": {"reduction": "none"}}
ONE_LOSS = """
import logging, torch
logging.basicConfig(level="WARNING", format="%(message)s")
from lal_triton.functional import cross_entropy
logits = torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1).requires_grad_()
cross_entropy(logits, torch.tensor([[[2]]])).backward()
assert torch.allclose(logits.grad.flatten(), logits.detach().flatten().softmax(0) - torch.tensor([0, 0, 1]))
"""


@pytest.fixture
def threads():
    """A function that sets their number."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_vector_slides_by_one_element(monkeypatch, avx512, dtype):
    import numba

    from lal_triton.cpu import vectors
    from lal_triton.cpu.compiling import OPTIONS
    from lal_triton.cpu.vectors import lanes, load, slide, store

    monkeypatch.setattr(vectors, "_has_avx512", lambda: avx512)

    @numba.njit(**OPTIONS)
    def move(numbers, out):
        store(out, 0, slide(load(numbers, 0, numbers), numbers, lanes(numbers)))
        return lanes(numbers)

    numbers, out = np.arange(40, dtype=dtype), np.zeros(16, dtype)
    count = move(numbers, out)
    assert out[:count].tolist() == numbers[1 : count + 1].tolist()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="huge pages are Linux's")
def test_a_large_gradient_has_huge_pages():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no huge pages")
    logits = torch.zeros(1, 4, 1024, 4096, requires_grad=True)  # 64 MB: a mapping of its own
    gradient = torch.autograd.grad(cross_entropy(logits, torch.zeros(1, 1024, 4096).long()), logits)[0]
    assert "hg" in flags_of_memory(gradient.data_ptr() + gradient.nbytes // 2)


def flags_of_memory(address):
    """Of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(edge, 16) for edge in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError(f"no mapping holds {address:#x}")


@pytest.mark.parametrize("low", [(150, 40), (37, 10)], ids=["equal sizes", "upsampled"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_any_number_of_threads_gives_the_same_bits(threads, low, options):
    logits, target = make_problem((3, 4, *low))[0], make_problem((3, 4, 150, 40))[1]
    results = []
    for number in (1, 2, 5):
        threads(number)
        steps.clear()
        results.append(value_and_gradient(logits, target, torch.float32, **options))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    logits, target = make_problem((2, 3, 140, 9))
    expected = locally_adaptive_loss(logits, target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        right = torch.equal(locally_adaptive_loss(logits, target), expected)
        torch.set_num_threads(1)  # as DataLoader's workers do
        os._exit(0 if right and torch.equal(locally_adaptive_loss(logits, target), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_in_one_band_ends_all(threads):
    from lal_triton.cpu import bands as own

    begun = []

    def job(number):
        begun.append(number)
        raise KeyboardInterrupt

    threads(2)
    with pytest.raises(KeyboardInterrupt):
        own.run(job, range(1000))
    assert len(begun) <= 2


@pytest.mark.long
def test_compiled_once_for_a_machine(tmp_path):
    """By two processes at once, then by none; in every process where nothing can be written."""

    def start(folder):
        environment = os.environ | {"LAL_TRITON_CACHE_DIR": str(folder)}
        return subprocess.Popen([sys.executable, "-c", ONE_LOSS], env=environment, stderr=subprocess.PIPE, text=True)

    for process in [start(tmp_path), start(tmp_path)]:
        assert "compiling the loss" in process.communicate()[1]
        assert process.returncode == 0
    cached = start(tmp_path)
    assert cached.communicate()[1] == ""
    assert cached.returncode == 0
    process = start("/proc/no such folder")
    assert "cannot be written" in process.communicate()[1]
    assert process.returncode == 0


def test_without_numba_the_reference_runs(monkeypatch):
    logits, target = make_problem()
    expected, expected_gradient = value_and_gradient(logits, target, torch.float64, backend="reference")
    monkeypatch.setattr(dispatch, "numba_works", lambda: False)
    dispatch._warn_of_numba.cache_clear()
    with pytest.warns(UserWarning, match="numba cannot be imported"):
        loss, gradient = value_and_gradient(logits, target, torch.float64)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        locally_adaptive_loss(logits, target)
    with pytest.raises(ValueError, match=r'backend is "cpu", expected .* numba cannot be imported'):
        locally_adaptive_loss(logits, target, backend="cpu")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logarithms_are_right_to_two_ulps(dtype):
    numba, np = pytest.importorskip("numba"), pytest.importorskip("numpy")
    from lal_triton.cpu.elementary import log_of_sum

    @numba.njit
    def logarithms(a, b):
        return np.array([log_of_sum(a[i], b[i]) for i in range(len(a))])

    a = np.logspace(-30, 30, 2001, dtype=dtype)
    for b in (1.0, 0.75, 0.0):
        found = logarithms(a, np.full_like(a, b))
        wide = a.astype(np.longdouble)
        expected = np.log1p(wide) if b == 1 else np.log(wide + b)
        ulp = np.maximum(np.spacing(abs(expected).astype(dtype)), np.finfo(dtype).eps / 8)  # near 0 of 1
        assert (abs(found - expected) <= 2 * ulp)[(b == 1.0) | (a > 1)].all()


def test_the_torch_backend_is_deprecated():
    logits, target = make_problem()
    with pytest.warns(DeprecationWarning, match='pass "auto" or "cpu"'):
        loss = LocallyAdaptiveLoss(backend="torch")(logits, target)
    assert torch.equal(loss, locally_adaptive_loss(logits, target, backend="cpu"))


@pytest.mark.parametrize("device", ["meta", "mps", "cuda"])
def test_other_devices_are_no_cpu(device):
    with pytest.raises(ValueError, match=f'backend is "cpu" and logits are on {device}'):
        dispatch.choose_backend("cpu", device, torch.float32)
    assert dispatch.choose_backend("auto", device, torch.float64) == "by image"


def test_without_a_gradient_the_loss_is_the_same():
    logits, target = make_problem()
    with torch.no_grad():
        assert torch.equal(cross_entropy(logits.requires_grad_(), target), cross_entropy(logits.detach(), target))


@pytest.mark.parametrize("options", [OPTIONS["lal"], OPTIONS["ce"]], ids=["lal", "ce"])
def test_the_gradient_is_what_a_step_allocates(options):
    """Of the logits' size there is one tensor; a graph that is kept needs a second one."""
    logits = torch.randn(1, 21, 321, 321, requires_grad=True)
    target = torch.randint(0, 21, (1, 321, 321))

    def step(retain_graph=False):
        torch.autograd.grad(locally_adaptive_loss(logits, target, **options), logits, retain_graph=retain_graph)

    step()
    assert allocations(step)[1] < 1.25 * logits.nbytes
    assert allocations(lambda: step(retain_graph=True))[1] > 2 * logits.nbytes


@pytest.mark.parametrize("kernel_size", [1, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_no_sweep_reads_beyond_its_copy(monkeypatch, kernel_size, layout):
    """Bands of 65 rows, of half precision: each is copied with its halo, and swept in pairs of rows."""
    from lal_triton.cpu import backend

    sweep, calls = backend.sweep, []

    def checked(workspace, x, place, *rest):
        first, last, height = rest[6], rest[7], len(rest[1])
        read = 4 * (kernel_size // 2) + last - first
        lowest = min(first - 2 * (kernel_size // 2) + read + read % 2 - 1, height - 1)
        _, of_classes, of_rows, of_columns = place
        assert place[0] + 2 * of_classes + lowest * of_rows + 8 * of_columns < len(x)
        calls.append(lowest)
        return sweep(workspace, x, place, *rest)

    monkeypatch.setattr(backend, "sweep", checked)
    logits = torch.randn(1, 3, 130, 9, dtype=torch.bfloat16).contiguous(memory_format=layout).requires_grad_()
    locally_adaptive_loss(logits, torch.randint(3, (1, 130, 9)), kernel_size=kernel_size).backward()
    assert len(calls) == 2


def test_weights_whose_sum_overflows_give_nan():
    logits, target = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    assert cross_entropy(logits, target, pixel_weight=torch.full((1, 4, 4), 3e38)).isnan()


def test_an_interrupted_backward_is_not_gone_on_with(monkeypatch):
    """torch frees what was saved; some rows of it may have been multiplied by their factors."""
    from lal_triton.cpu import scaling

    def interrupt(*_):
        raise KeyboardInterrupt

    logits, target = make_problem((2, 3, 5, 6))
    loss = locally_adaptive_loss(logits.requires_grad_(), target)
    with monkeypatch.context() as patch:
        patch.setattr(scaling, "scale_rows", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
