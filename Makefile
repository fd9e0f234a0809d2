# Needs make, Python 3.11 to 3.13 with venv, and a network for the first call: `make PYTHON=python3.12 setup`.
# Every target sets up .venv by itself; ARGS is handed on: `make test ARGS="-k split -x"`.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
CODE := $(wildcard src tests benchmarks docs/*.py)
BENCHMARKS := $(sort $(wildcard benchmarks/bench_*.py))

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format docs parity bench lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '  make %-10s %s\n' "$$target" "$$text"; done

setup: $(VENV)/installed ## create .venv from requirements.lock

demo: $(VENV)/installed ## train, evaluate and predict on drawn pictures
	@$(BIN)/sightline demo $(ARGS)

test: $(VENV)/installed ## run the tests, less the slow ones
	@$(BIN)/pytest $(ARGS)

test-slow: $(VENV)/installed ## run the slow tests only
	@$(BIN)/pytest -m slow $(ARGS)

lint: $(VENV)/installed ## check style, format and types
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy $(CODE)

format: $(VENV)/installed ## format the code and mend what ruff can mend safely
	@$(BIN)/ruff check --fix-only --quiet $(CODE)
	@$(BIN)/ruff format $(CODE)

docs: $(VENV)/installed ## write docs/reference.md from the code
	@$(BIN)/python docs/generate.py

parity: $(VENV)/installed ## export every network in every format installed here and write the table of docs/export.md
	@$(BIN)/python docs/parity.py $(ARGS)

bench: $(VENV)/installed ## run every benchmarks/bench_*.py
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

lock: $(VENV)/installed ## bring requirements.lock up to pyproject.toml; ARGS=--upgrade takes the newest of everything
	@cp requirements.lock $(VENV)/new.lock
	@$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --python-version 3.11 \
		--extra train --extra tensorflow --group dev --custom-compile-command "make lock" \
		$(ARGS) --output-file $(VENV)/new.lock pyproject.toml
	@if cmp -s $(VENV)/new.lock requirements.lock; then echo "requirements.lock is up to date"; else \
		mv $(VENV)/new.lock requirements.lock; echo "requirements.lock is new; the next make rebuilds $(VENV)"; fi

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps: a changed lock rebuilds .venv (minutes), a changed pyproject.toml only installs the project (seconds).
$(VENV)/locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Sightline needs Python 3.11, 3.12 or 3.13 and $(PYTHON) is another: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Creating $(VENV) from requirements.lock (about two minutes, once) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@touch $@

$(VENV)/installed: $(VENV)/locked pyproject.toml
	@$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@
	@echo "$(VENV) is ready: $(BIN)/sightline --help"
