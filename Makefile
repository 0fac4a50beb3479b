# `make run` boots a first guest, `make test` runs every test; both set up what is missing first.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PYTEST := $(BIN)/pytest

.PHONY: help setup run test check unit vm test-fresh bench docs clean

help:
	@echo 'make setup       install what is missing and make .venv'
	@echo 'make run         build and boot examples#hello'
	@echo 'make test        every test (make check first)'
	@echo 'make check       style, types, layers'
	@echo 'make unit        the fast tests'
	@echo 'make vm          the tests that boot guests'
	@echo 'make test-fresh  make run and make test in fresh Debian 12 and 13 containers'
	@echo 'make bench       benchmarks against peers'
	@echo 'make docs        the handbook, into site/'

setup: $(STAMP)

$(STAMP): pyproject.toml tools/setup
	@sh tools/setup $(VENV)

run: setup
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/microvm run examples#hello; \
	else $(BIN)/microvm run --until-up examples#hello; fi

test: setup check
	$(PYTEST) tests --ignore=tests/fresh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup
	$(PYTEST) tests/unit tests/contract tests/golden

vm: setup
	$(PYTEST) tests/host tests/vm

test-fresh: setup
	$(PYTEST) tests/fresh

bench: setup
	$(BIN)/python bench/run.py

docs: setup
	$(BIN)/pip install -q '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site dist
