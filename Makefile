# Needs make, Python 3.11 to 3.13 with venv, and a network for the first call: `make PYTHON=python3.12 setup`.
# Every target sets up .venv by itself; ARGS is handed on: `make test ARGS="-k split -x"`.

PYTHON ?= python3
ARGS ?=
# Processes that run tests, each of which loads TensorFlow; 0: the one that collects them.
WORKERS ?= 2
# For few tests, many of which are in the same file: a process that is done takes tests of another's file.
STEAL := -n $(WORKERS) --dist worksteal

# PyTorch's build for CPUs: no hash, since each index that has it has files of its own. Where pip's own index has only
# the build for GPUs (Linux, x86-64), name a wheel: `make TORCH=PATH test-backends`.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
BACKENDS := .venv-backends
ON_BACKENDS := $(BACKENDS)/bin/python
RAY := .venv-ray
ON_RAY := $(RAY)/bin/python
CODE := $(wildcard src tests benchmarks docs/*.py)
BROWSER_TESTS := $(wildcard tests/studio/test_*browser.py) tests/studio/test_accessibility.py tests/studio/test_network.py \
	tests/studio/test_label_results.py tests/studio/test_grades.py tests/cli/test_serve_page.py
# The files of tests with a mark: to collect all others would take longer than to run many of these.
marked = $(shell grep -rl --include='test_*.py' 'mark\.$1\b' tests)
BENCHMARKS := $(sort $(wildcard benchmarks/bench_*.py))

# Tests start Python many times; each start that finds bytecode saves half a second.
unexport PYTHONDONTWRITEBYTECODE
# $(call compile,FOLDER): compile an environment on all cores, where pip would use one; some packages hold files of Python 2.
compile = @$1/bin/python -m compileall -qq -j 0 $1/lib || true

# $(call test_backends,SELECTION): the tests marked `backends` on JAX and PyTorch, and those marked `installed`. Each in one
# process: a second one would import the framework and compile its programs again. A cache each, as they run side by side.
SELECTION ?= not slow
define test_backends
	@$(MAKE) --no-print-directory --jobs=$(WORKERS:0=1) $(if $(filter output-sync,$(.FEATURES)),--output-sync) \
		on-jax on-torch on-installed SELECTION="$1"
endef
on_backends = $(ON_BACKENDS) -m pytest -o cache_dir=.pytest_cache/$@ -m "$1 and $(SELECTION)" $(call marked,$1) $(ARGS)

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage test-slow test-browser test-backends test-ray on-jax on-torch on-installed lint format docs site parity bench bench-quick fuzz lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '  make %-10s %s\n' "$$target" "$$text"; done

setup: $(VENV)/installed ## create .venv from requirements.lock

demo: $(VENV)/installed ## fine-tune on drawn images, evaluate, predict and report, in under a minute
	@$(BIN)/sightline demo $(ARGS)

test: $(VENV)/installed ## run the tests, less the slow ones
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: $(VENV)/installed ## run the tests, less the slow ones, and check that they cover 92% of the lines
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(ARGS)

test-slow: $(VENV)/installed .venv-clients/installed $(BACKENDS)/installed ## run the slow tests only; without ARGS, on each backend too
	@$(BIN)/pytest -m slow $(ARGS)
	$(if $(ARGS),,$(call test_backends,slow))

test-browser: $(VENV)/installed ## run the tests of the pages in Chromium, which has to be on PATH
	@$(BIN)/pytest -m "slow and not exhaustive" $(STEAL) $(BROWSER_TESTS) $(ARGS)

test-backends: $(VENV)/installed $(BACKENDS)/installed ## run the tests of backends and formats on JAX, PyTorch and TensorFlow
	$(call test_backends,not slow)

on-jax on-torch:
	@echo "== $(@:on-%=%)"
	@KERAS_BACKEND=$(@:on-%=%) $(call on_backends,backends)

on-installed:
	@echo "== formats and other backends, from TensorFlow"
	@$(call on_backends,installed)

test-ray: $(VENV)/installed $(RAY)/installed ## run the tests on Ray, which start clusters on this machine
	@$(ON_RAY) -m pytest -m ray $(ARGS)

lint: $(VENV)/installed ## check style, format and types
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy $(CODE)

format: $(VENV)/installed ## format the code and mend what ruff can mend safely
	@$(BIN)/ruff check --fix-only --quiet $(CODE)
	@$(BIN)/ruff format $(CODE)

docs: $(VENV)/installed ## write docs/reference.md from the code
	@$(BIN)/python docs/generate.py

# Not --quiet: it hides warnings, also from --strict.
site: .venv-docs/installed ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "Open site/index.html, or serve it: .venv-docs/bin/mkdocs serve"

parity: $(VENV)/installed ## export every network in every format installed here and write the table of benchmarks/results/export.md
	@$(BIN)/python docs/parity.py $(ARGS)

bench: $(VENV)/installed ## run every benchmarks/bench_*.py
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

bench-quick: $(VENV)/installed ## append the ratios of a few benchmarks to benchmarks/history.jsonl, in about five minutes
	@$(BIN)/python benchmarks/quick.py $(ARGS)

fuzz: $(VENV)/fuzz ## draw inputs that may break a reader of files, for FUZZ_SECONDS (60); on Linux and x86-64
	@$(BIN)/python tests/fuzz.py $(ARGS)

lock: $(VENV)/installed ## bring requirements.lock up to pyproject.toml; ARGS=--upgrade takes the newest of everything
	@cp requirements.lock $(VENV)/new.lock
	@$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --python-version 3.11 \
		--extra train --extra tensorflow --group dev --custom-compile-command "make lock" \
		$(ARGS) --output-file $(VENV)/new.lock pyproject.toml
	@if cmp -s $(VENV)/new.lock requirements.lock; then echo "requirements.lock is up to date"; else \
		mv $(VENV)/new.lock requirements.lock; echo "requirements.lock is new; the next make rebuilds $(VENV)"; fi
	@cp requirements-backends.lock $(VENV)/new.lock
	@$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --python-version 3.11 \
		--extra jax --extra export --extra mlflow --extra wandb --extra umap --extra heif --group backends --constraint requirements.lock --custom-compile-command "make lock" \
		$$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.lock) \
		$(ARGS) --output-file $(VENV)/new.lock pyproject.toml
	@mv $(VENV)/new.lock requirements-backends.lock
	@cp requirements-ray.lock $(VENV)/new.lock
	@$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --python-version 3.11 \
		--extra ray --extra jax --constraint requirements.lock --custom-compile-command "make lock" \
		$$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.lock) \
		$(ARGS) --output-file $(VENV)/new.lock pyproject.toml
	@mv $(VENV)/new.lock requirements-ray.lock
	@$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --python-version 3.11 \
		--extra serve --extra otel --constraint requirements.lock --custom-compile-command "make lock" \
		$(ARGS) --output-file requirements-serve.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --group fuzz \
		--custom-compile-command "make lock" $(ARGS) --output-file requirements-fuzz.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --group clients \
		--custom-compile-command "make lock" $(ARGS) --output-file requirements-clients.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --group docs \
		--custom-compile-command "make lock" $(ARGS) --output-file requirements-docs.lock

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) $(BACKENDS) $(RAY) .venv-clients .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps: a changed lock rebuilds .venv (minutes), a changed pyproject.toml only installs the project (seconds).
$(VENV)/locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Sightline needs Python 3.11, 3.12 or 3.13 and $(PYTHON) is another: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Creating $(VENV) from requirements.lock (about two minutes, once) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --no-compile --require-hashes -r requirements.lock
	$(call compile,$(VENV))
	@touch $@

$(VENV)/installed: $(VENV)/locked pyproject.toml
	@$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@
	@echo "$(VENV) is ready: $(BIN)/sightline --help"

# $(call layer_venv,FOLDER,WHAT,LOCK): make FOLDER on top of $(VENV), which it sees through a .pth file; only what LOCK adds
# lies in it.
define layer_venv
	@echo "Creating $1 from $2 (about a minute, once) ..."
	@$(BIN)/python -m venv --clear $1
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	@$1/bin/python -m pip --disable-pip-version-check -qq install --no-compile --no-deps --require-hashes -r $3
endef

$(BACKENDS)/installed: $(VENV)/locked requirements-backends.lock
	$(call layer_venv,$(BACKENDS),requirements-backends.lock and $(TORCH),requirements-backends.lock)
	@$(ON_BACKENDS) -m pip --disable-pip-version-check -qq install --no-compile --no-deps "$(TORCH)"
	$(call compile,$(BACKENDS))
	@$(ON_BACKENDS) -c 'import torch' || { echo "$(TORCH) is not a build for CPUs: make TORCH=WHEEL test-backends"; exit 1; }
	@touch $@

# JAX lies beside Ray, for training.
$(RAY)/installed: $(VENV)/locked requirements-ray.lock
	$(call layer_venv,$(RAY),requirements-ray.lock,requirements-ray.lock)
	$(call compile,$(RAY))
	@touch $@

$(VENV)/fuzz: $(VENV)/installed requirements-fuzz.lock
	@$(PIP) install --require-hashes -r requirements-fuzz.lock
	@touch $@

# An environment of its own: clients of the server, whose packages contradict those of $(VENV).
.venv-clients/installed: requirements-clients.lock
	@echo "Creating .venv-clients from requirements-clients.lock (about a minute, once) ..."
	@$(PYTHON) -m venv --clear .venv-clients
	@.venv-clients/bin/python -m pip --disable-pip-version-check -qq install --no-deps --require-hashes -r requirements-clients.lock
	@touch $@

# An environment of its own, which needs no framework: mkdocstrings reads the sources.
.venv-docs/installed: requirements-docs.lock
	@$(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python -m pip --disable-pip-version-check -qq install --require-hashes -r requirements-docs.lock
	@touch $@
