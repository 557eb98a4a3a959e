# Two commands do everything on a fresh machine: `make train` and `make test`. Both may be repeated at no cost.
# Which torch is installed is pip's choice: its own configuration (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf) decides.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install install-dev install-ffcv train test test-peers lint typecheck format gpu-check clean

VENV := .venv
BIN := $(VENV)/bin
RUN_DIR := runs/demo
FFCV_PACKAGES := g++ pkg-config python3-dev libopencv-dev libturbojpeg0-dev

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

train: install ## set up, then train MaskCo on the built-in demo set into runs/demo
	$(BIN)/maskco-fast train --recipe demo --run-dir $(RUN_DIR)

test: install-dev lint ## set up, check format, lint and types, run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal

# Where a package cannot be had, its tests are skipped with the reason.
test-peers: $(VENV)/.installed-peers ## train inside accelerate, transformers and mmpretrain, which it installs
	$(BIN)/python -m pytest -rs tests/loaders/adapters/test_accelerate.py tests/loaders/adapters/test_mmpretrain.py \
		tests/loaders/adapters/test_transformers.py

install: $(VENV)/.installed ## make the virtual environment and install the package

install-dev: $(VENV)/.installed-dev ## the same, with what the tests and checks need

# FFCV compiles a library of its own. Where it cannot be had, its tests skip and everything else goes on.
install-ffcv: | $(BIN)/pip ## the FFCV loader; as root on Debian, with the system packages that it is compiled with
	@can_build() { g++ --version && pkg-config --exists opencv4 libturbojpeg; } >/dev/null 2>&1; \
	if ! can_build && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && apt-get install --yes --no-install-recommends $(FFCV_PACKAGES) || true; \
	fi; \
	if ! can_build || ! $(BIN)/python -m pip install -e '.[ffcv]'; then \
		echo "FFCV is left out: sudo apt-get install $(FFCV_PACKAGES) && make install-ffcv" >&2; \
	fi

lint: install-dev ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory typecheck

# Type checkers cannot follow pyproject's package-dir map, so mypy reads the package as a wheel lays it out, with benchmarks/ and
# tests/ beside it. The wheel is built from a copy: setuptools would leave a build/ folder in the tree and take deleted modules
# from it the next time.
typecheck: install-dev ## check the types of the package, the benchmarks and the tests
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	mkdir "$$folder/source"; \
	cp -r pyproject.toml README.md LICENSE maskco_fast loaders kernels "$$folder/source"; \
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$$folder" "$$folder/source"; \
	$(BIN)/python -m zipfile -e "$$folder"/maskco_fast-*.whl "$$folder/package"; \
	cp -r benchmarks tests "$$folder/package"; \
	cd "$$folder/package"; \
	echo "mypy on the assembled package, benchmarks and tests"; \
	"$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" \
		-p maskco_fast -p benchmarks -p tests

format: install-dev ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Nothing is installed: such a machine may have no network. PYTHON=… chooses the interpreter.
gpu-check: ## on a machine with a GPU: values, tests, times of step, kernels and loaders, as JSON to attach
	@python=$${PYTHON:-$(BIN)/python}; [ -x "$$python" ] || python=$${PYTHON:-python3}; \
	"$$python" -m benchmarks.gpu

clean: ## remove the environment, caches and builds; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are as old as the last installation; only a change of pyproject.toml makes them stale.
$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install 'setuptools>=77' -e '.[dev,dali,bench,remote]'
	@$(MAKE) --no-print-directory install-ffcv
	@touch $(VENV)/.installed $@

$(VENV)/.installed-peers: $(VENV)/.installed-dev
	@if $(BIN)/python -m pip install -e '.[peers]'; then touch $@; \
	else echo "the peers are left out: $(BIN)/python -m pip install -e '.[peers]'" >&2; fi

# PYTHON=… chooses another interpreter than the first one found that is 3.10 or newer and can make environments.
$(BIN)/pip:
	@for python in $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue; \
		found="$$python"; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
		echo "making $(VENV) with $$("$$python" --version) ($$(command -v "$$python"))"; \
		exec "$$python" -m venv $(VENV); \
	done; \
	if [ -n "$${found:-}" ]; then \
		echo "$$found cannot make virtual environments: sudo apt-get install python3-venv" >&2; \
	else \
		echo "no Python from 3.10 on found: sudo apt-get install python3 python3-venv, or give PYTHON=…" >&2; \
	fi; \
	exit 1
