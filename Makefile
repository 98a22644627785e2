# The two commands of README.md: `make repro` and `make test`. Both set up first what is missing.
PYTHON ?= python3
# Two tests at a time; those of a file share what they set up. Long files come first, tests/conftest.py.
TOGETHER = --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup repro test test-fast test-full lint

setup:
	@$(PYTHON) envs/setup.py

repro: setup
	@PATH="$(CURDIR)/.venv/bin:$$PATH"; quantline plan && dvc repro

test: setup lint
	@PATH="$(CURDIR)/.venv/bin:$$PATH" pytest $(TOGETHER)

test-fast: setup
	@PATH="$(CURDIR)/.venv/bin:$$PATH" pytest $(TOGETHER) -m "not slow"

test-full: setup lint
	@PATH="$(CURDIR)/.venv/bin:$$PATH"; pytest $(TOGETHER) -m ""

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/lint-imports --no-logo > .lint-imports.log || { cat .lint-imports.log; exit 1; }
	@.venv/bin/mypy
