# The two commands of README.md: `make repro` and `make test`. Both set up first what is missing.
PYTHON ?= python3
# Two tests at a time; those of a file share what they set up. Long files come first, tests/conftest.py.
TOGETHER = --numprocesses 2 --dist loadfile --no-loadscope-reorder

NOTHING_CHANGED = {"inputs": ["always changed"]}

.PHONY: setup repro test test-fast test-full lint

setup:
	@$(PYTHON) envs/setup.py

# `inputs` always counts as changed: it is run first, and then nothing else may have changed.
repro: setup
	@PATH="$(CURDIR)/.venv/bin:$$PATH"; quantline inputs || exit; \
	if [ -f dvc.lock ] && [ "$$(dvc status --json)" = '$(NOTHING_CHANGED)' ]; then \
	  echo "Nothing has changed since the last run; the report is artifacts/report/index.html"; \
	else \
	  quantline plan && dvc repro; \
	fi

# Lint runs beside the tests; its output comes when it is done, and either fails the target.
test: setup
	@PATH="$(CURDIR)/.venv/bin:$$PATH"; $(MAKE) --no-print-directory --output-sync lint & lint=$$!; \
	pytest $(TOGETHER); tests=$$?; wait $$lint && exit $$tests

test-fast: setup
	@PATH="$(CURDIR)/.venv/bin:$$PATH" pytest $(TOGETHER) -m "not slow"

test-full: setup lint
	@PATH="$(CURDIR)/.venv/bin:$$PATH" pytest $(TOGETHER) -m ""

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/lint-imports --no-logo
	@.venv/bin/mypy
