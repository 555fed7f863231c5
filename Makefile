# Everything a fresh machine needs is set up by the first target called; `make` alone lists them.
# Paths are relative, so the checkout may lie in a folder with spaces.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
CLIP   := .cache/clips/bigbuckbunny.mp4
# as many tests at a time as there are CPUs, and at most four: some of them load several
TOGETHER := --numprocesses auto --maxprocesses 4 --dist worksteal
READY  := $(VENV)/.installed $(CLIP)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

TESTED := .cache/tested
SOURCES := Makefile README.md pyproject.toml $(shell find benchmarks compose docker docs tests transcoder -type f ! -path '*/__pycache__/*')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all test-containers simgpu chaos check bench clean lock system

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
	  printf '  make %-15s %s\n' "$$name" "$$what"; done

demo: $(READY) ## Transcode a real clip through a private Redis and a real worker, and show the result.
	@$(PY) -m tests.demo

test test-all test-containers simgpu chaos $(TESTED): export GPU := software

test: $(READY) ## Run every test that needs neither root nor a container engine.
	@$(PY) -m pytest $(TOGETHER) -m 'not root and not engine'
	@touch $(TESTED)

test-all: $(TESTED) ## Run those that need root or a container engine too; they fail where there is none.
	@$(PY) -m pytest $(TOGETHER) --dist loadfile -m 'root or engine'

test-containers: $(READY) ## Build the images and run the Compose files on the real engine (part of test-all).
	@$(PY) -m pytest $(TOGETHER) --dist loadfile tests/containers --ignore tests/containers/test_fresh_machine.py

# What `make test` has passed is not run again before something has changed.
$(TESTED): $(SOURCES) | $(READY)
	@$(PY) -m pytest $(TOGETHER) -m 'not root and not engine'
	@touch $@

simgpu: $(READY) ## Build the GPU in software, and run all that is tested on it.
	@$(PY) -m pytest $(TOGETHER) -m 'gpu and not engine'

chaos: $(READY) ## Break everything at random while jobs run, as root (CHAOS='--jobs 1000 --seed 7'; a test of it is in test-all).
	@$(PY) -m tests.chaos $(CHAOS)

check: $(VENV)/.installed ## Check format, lint, types and import contracts, and run the fast tests, in seconds.
	@$(PY) -m ruff format --check --quiet . || { echo "make check: run '$(PY) -m ruff format .'" >&2; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-logo --cache-dir .cache/import-linter
	@$(PY) -m pytest -m 'not slow and not root and not engine' --timeout 10

bench: $(READY) ## Measure what the queue, the verification and the bookkeeping cost beside bare ffmpeg.
	@$(PY) -m benchmarks.overhead

clean: ## Remove the virtual environment, the caches and the demo's output.
	@rm -rf $(VENV) .cache demo-output dist .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# System packages: looked at every time, because it costs milliseconds and a machine can lose them.
system:
	@PYTHON='$(PYTHON)' VENV='$(VENV)' GPU='$(GPU)' sh tests/setup.sh

$(VENV)/.locked: requirements-dev.lock | system
	@echo 'Installing the locked Python packages into $(VENV)'
	@'$(PYTHON)' -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --no-deps --only-binary :all: --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml | system
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(CLIP): | $(VENV)/.locked
	@$(PY) -m tests.clips

# For maintainers: newest versions that pyproject.toml allows, for every Python that it allows.
lock: | system
	@'$(PYTHON)' -m venv .cache/uv && .cache/uv/bin/python -m pip install --quiet uv
	@for lock in "requirements.lock pyproject.toml" "requirements-dev.lock pyproject.toml --group dev" "requirements-build.lock --group build"; do set -- $$lock; out=$$1; shift; \
	  .cache/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' -o "$$out" "$$@"; done
