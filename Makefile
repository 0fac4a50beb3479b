# `make run` boots a first guest, `make test` runs every test; both set up what is missing first.
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest

.PHONY: help setup run test check unit vm test-nested test-fresh bench bench-peers docs clean

help:
	@echo 'make setup       install what is missing and make .venv'
	@echo 'make run         build examples#hello and boot it'
	@echo 'make test        every test, after make check'
	@echo 'make check       style, types, layers'
	@echo 'make unit        the fast tests: no root, no guest'
	@echo 'make vm          the tests that build and boot guests'
	@echo 'make test-nested every hypervisor in a host guest of our own; writes docs/conformance.md'
	@echo 'make test-fresh  make run and make test in fresh Debian 12 and 13 containers (root)'
	@echo 'make bench       benchmarks against peers, into docs/performance.md'
	@echo 'make bench-peers install the peers; those that are missing are not measured'
	@echo 'make docs        the handbook, into site/'
	@echo 'make clean       remove what the others made, except the store'

setup:
	@sh tools/setup $(VENV)

# Without a terminal nobody can log in or end it: show that it came up, and end it.
run: setup
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/microvm run examples#hello; \
	else $(BIN)/microvm run --until-up examples#hello; fi

test: check
	$(PYTEST) tests --ignore=tests/fresh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

unit: setup
	$(PYTEST) $(wildcard tests/unit tests/contract tests/golden)

vm: setup
	$(PYTEST) tests/host tests/vm

# The programs: $MICROVM_TEST_HYPERVISORS (a directory), $MICROVM_TEST_QEMU (QEMU 10), or PATH.
# MICROVM_TEST_REPEAT=20: boots of each. One hypervisor: make test-nested ARGS='-k crosvm'; the page
# is written once all five were looked at.
test-nested: setup
	MICROVM_TEST_CONFORMANCE=1 $(PYTEST) $(ARGS) tests/conformance

test-fresh:
	@sh tools/setup $(VENV) systemd-container
	$(PYTEST) -s tests/fresh

# ARGS: `--only boot`, `--quick`; see `python -m bench --help`.
bench: setup
	$(BIN)/python -m bench $(ARGS)

bench-peers:
	@sh tools/bench-peers

docs: setup
	$(BIN)/pip install -q -e '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
