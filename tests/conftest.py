"""The kernels run natively where there is a GPU and in Triton's interpreter elsewhere."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--every", type=int, default=1, metavar="N", help="run every N-th of the tests only")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        for item in items:
            if hasattr(item, "callspec") and "cpu" in map(str, item.callspec.params.values()):
                item.add_marker(pytest.mark.skip(reason="the tensors are on a GPU"))
    kept = items[:: config.getoption("every")]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def pytest_runtest_logreport(report):
    """Failures are written as they come where LAL_TEST_FAILURES names a file: a run that is killed has no summary."""
    if report.failed and "LAL_TEST_FAILURES" in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ["LAL_TEST_FAILURES"], "a") as file:
            crash = getattr(report.longrepr, "reprcrash", report.longrepr)
            message = getattr(crash, "message", str(crash)).strip().replace("\n", " ")
            file.write(f"{report.nodeid} ({report.when}): {message[:300]}\n")


@pytest.fixture(autouse=True)
def cheap_strips(request):
    """The time to compile a kernel, and to interpret it, grows with the rows of a strip."""
    from lal_triton.kernels import configs

    if request.node.get_closest_marker("pinned"):
        yield
        return
    config = {"rows": 2, "columns": 16, "strips": 4}
    merge = {**config, "groups": 1}
    with configs.forcing({"local_loss_fwd": config, "local_cost_bwd": config, "merge_bwd": merge}):
        yield


@pytest.fixture(autouse=True)
def fresh_steps():
    """A step remembers configurations and limits that a test may change."""
    from lal_triton import steps

    steps.clear()


@pytest.fixture
def poison():
    """The kernels' outputs start as NaN; gives the buffers' shapes."""
    from poison import poisoning

    with poisoning() as shapes:
        yield shapes


@pytest.fixture
def load_example(monkeypatch):
    """A function that imports an example, by name, as if it was run from its folder."""
    folder = Path(__file__).parents[1] / "examples"
    names = [path.stem for path in folder.glob("*.py")]
    earlier = {name: sys.modules.pop(name, None) for name in names}
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update({name: module for name, module in earlier.items() if module is not None})
