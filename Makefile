# Everything happens in .venv, which `make` builds when it is missing or pyproject.toml changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := $(VENV)/.installed-bench

# .venv is made anew where its Python is missing, too old, or not that of PYTHON=... where it is given.
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
NUMBER := import sys; print(*sys.version_info[:2])
FITS = $(BIN)/python -c '$(RECENT)' 2>/dev/null && { test '$(origin PYTHON)' != 'command line' || \
	test "$$($(BIN)/python -c '$(NUMBER)')" = "$$($(PYTHON) -c '$(NUMBER)')"; }
$(shell $(FITS) || rm -f $(STAMP) $(BENCH))

.PHONY: help install quickstart test test-all test-newest bench bench-install lint format clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@$(FITS) || $(PYTHON) -c '$(RECENT)' || { \
	echo "$(PYTHON): Python 3.11 or newer is needed; name one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(FITS) || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

install: $(STAMP)  ## Build .venv with the package and its development tools.

quickstart: $(STAMP)  ## Train, evaluate and sample a small model: about five minutes on two cores.
	$(BIN)/mdlm train experiments/quickstart.py --out runs/quickstart
	$(BIN)/mdlm eval runs/quickstart
	$(BIN)/mdlm sample runs/quickstart --length 256

# One of 36 parts of the tests, another each day (see tests/parts.py). `make test PART=3/36` runs
# that of another day.
PART ?= $(shell expr `date +%s` / 86400 % 36)/36

test: $(STAMP)  ## The tests that CI runs: a rotating part of the slow tests and of the cases.
	$(BIN)/python -m pytest -m "not gpu" --part $(PART) --numprocesses auto --dist loadfile

test-all: $(STAMP)  ## Every test that this machine can run.
	$(BIN)/python -m pytest

test-newest:  ## The tests on the newest Python found here, with the newest JAX it resolves to.
	@newest=$$(for p in python3.15 python3.14 python3.13 python3.12; do command -v $$p && break; done); \
	if [ -z "$$newest" ]; then echo "test-newest: no Python newer than 3.11 on this machine"; exit 0; fi; \
	$(MAKE) test PYTHON=$$newest VENV=.venv-newest

# A build of PyTorch for the CPU alone is enough; one that is installed already is kept.
$(BENCH): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench,harness]'
	touch $@

bench-install: $(BENCH)  ## What benchmarks and tests compare with, PyTorch, and lm-eval.

bench: $(BENCH)  ## Speed and memory on this machine, beside PyTorch: about seven minutes.
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.loss_head
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.sample

lint: $(STAMP)  ## ruff and pyright.
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

format: $(STAMP)  ## Let ruff lay the code out.
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## Remove the virtual environments (run folders stay).
	rm -rf .venv .venv-newest
