# make bench   the main job: what the loss costs here, against its peers (12 minutes on two busy cores, 2 on idle ones;
#              QUICK=1: 3 minutes and 1)
# make train   trains a small network with every loss on the shipped image, and draws what comes of it (19 minutes on two
#              busy cores, 7 on idle ones)
# make test    the tests, but for what takes long (11 minutes on two idle cores)
# make test-long, make test-all   what takes long (compiling for every target, the cost of every kernel; 5 minutes), or all
# make test-oldest, make test-newest   quick tests with the oldest versions that are declared, or the newest (5 minutes)
# make test-frameworks   tests with mmsegmentation, smp, timm and torchvision, which need a torch with CUDA (6.4 GB, 7 minutes)
# make mutations   breaks the package in a hundred places and looks whether the tests notice (half an hour)
# make lint    ruff and mypy
# make docs    the documentation site, in build/site (half a minute)
# make package wheel and sdist, in dist
# make gpu     tests, tuning and benchmarks on a machine with a GPU, torch and Triton but no network; 8 minutes at most
#              (QUICK=1: every kernel once, and each loss beside its peers; 200 seconds at most)
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= bench_results
BIN := $(VENV)/bin
OLDEST_PYTHON ?= python3.11
OF_TORCH := $(addprefix test_,$(addsuffix .py,backends center cross_entropy focal import max_pooling modules ops \
	reference steps upsampling validation versions))
OF_KERNELS := test_kernels.py test_upsampled_kernels.py

.PHONY: bench train test test-long test-all test-oldest test-newest test-frameworks mutations lint docs package gpu clean

bench: $(VENV)/.ready
	$(BIN)/lal-triton bench $(if $(QUICK),--quick) --output $(OUTPUT)

train: $(VENV)/.ready
	$(BIN)/lal-triton train --output train_results

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-long: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m long

test-all: test test-long

mutations: $(VENV)/.ready
	$(BIN)/python tests/mutations.py --write

# The package itself is installed, not linked, and the tests run where the checkout does not shadow it.
test-oldest: .venv-oldest/.ready
test-newest: .venv-newest/.ready
test-oldest test-newest: test-%:
	rm -rf build
	.venv-$*/bin/python -m pip install --quiet --no-deps .
	.venv-$*/bin/python -m pip list | grep -E "^(torch|triton|numpy|platformdirs|tqdm) "
	cd tests && ../.venv-$*/bin/pytest -n 2 -k "not triton and not no_allocation" $(OF_TORCH)
	cd tests && ../.venv-$*/bin/pytest -n 2 --every 10 $(OF_KERNELS)
	cd tests && ../.venv-$*/bin/pytest test_compile.py -k one_target
	cd tests && ../.venv-$*/bin/pytest -m long test_overhead.py

test-frameworks: .venv-frameworks/.ready
	.venv-frameworks/bin/python -m pip install --quiet --no-deps .
	cd tests && ../.venv-frameworks/bin/pytest test_mmseg.py test_examples_of_networks.py

.venv-frameworks/.ready: pyproject.toml requirements-frameworks.txt
	$(PYTHON) -m venv --clear .venv-frameworks
	.venv-frameworks/bin/python -m pip install --quiet --requirement requirements-frameworks.txt . pytest pillow
	touch $@

.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	$(OLDEST_PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt . hypothesis pytest pytest-xdist
	touch $@

# torch pins a Triton of its own: the newest comes after it.
.venv-newest/.ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet . hypothesis pytest pytest-xdist
	.venv-newest/bin/python -m pip install --quiet --upgrade --no-deps numpy triton
	touch $@

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.ready
	$(BIN)/python -m sphinx --conf-dir docs --fail-on-warning --keep-going --quiet . build/site
	@echo build/site/index.html

package: $(VENV)/.ready
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(QUICK),--quick) --output $(OUTPUT)

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Installing lal_triton and its tools into $(VENV), which takes minutes, once."
	@echo "PyPI's torch for Linux brings CUDA, 5 GB and more; README.md says how to get torch for CPUs alone."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-frameworks
