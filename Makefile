# Few verbs, the same for people and for CI. Each makes what it needs first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help setup demo test test-faults check bench clean

help:
	@echo "make demo   data, model, bundle and an HTTP service, in one go (ARGS=\"--no-wait --data FOLDER\")"
	@echo "make test   every test, on a real local Ray"
	@echo "make test-faults   breaks trainings on purpose: kills, full disks, hung workers, lost nodes"
	@echo "make check  ruff, formatting, mypy"
	@echo "make bench  the benchmarks, into docs/benchmarks/"

setup: $(VENV)/.ready

# Made again whenever what is to be installed changes.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/recsys demo $(ARGS)

# What starts no clusters first, since it is the quickest to fail; two files at a time, as each waits for much.
APART := tests/integration tests/e2e
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# With ARGS="-k something" all are looked through at once: one of the two may have no such test.
test: setup
ifeq ($(ARGS),)
	$(BIN)/python -m pytest $(TWO) $(APART:%=--ignore %) tests
	$(BIN)/python -m pytest $(TWO) $(APART)
else
	$(BIN)/python -m pytest tests $(ARGS)
endif

test-faults: setup
	$(BIN)/python -m pytest -m faults tests/faults $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,bench]"
	set -e; for bench in benchmarks/bench_*.py; do $(BIN)/python $$bench $(ARGS); done

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
