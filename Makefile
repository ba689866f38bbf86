# make bench   the main job: what the loss costs here, against its peers (5 minutes; QUICK=1: under one)
# make train   trains a small network with every loss on the shipped image, and draws what comes of it (10 minutes)
# make test    the tests
# make lint    ruff and mypy
# make gpu     tests, tuning and benchmarks on a machine with a GPU, torch and Triton but no network; 9 minutes at most
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= bench_results
BIN := $(VENV)/bin

.PHONY: bench train test lint gpu clean

bench: $(VENV)/.ready
	$(BIN)/lal-triton bench $(if $(QUICK),--quick) --output $(OUTPUT)

train: $(VENV)/.ready
	$(BIN)/lal-triton train --output train_results

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu:
	$(PYTHON) benchmarks/gpu.py --output $(OUTPUT)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
