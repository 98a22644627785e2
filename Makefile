# The two commands of README.md: `make repro` and `make test`. Both set up first what is missing.
PYTHON ?= python3

.PHONY: setup repro test test-fast lint

setup:
	@$(PYTHON) envs/setup.py

repro: setup
	@PATH="$(CURDIR)/.venv/bin:$$PATH"; quantline plan && dvc repro

test: setup lint
	@PATH="$(CURDIR)/.venv/bin:$$PATH" pytest

test-fast: setup
	@PATH="$(CURDIR)/.venv/bin:$$PATH" pytest -m "not slow"

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/mypy
