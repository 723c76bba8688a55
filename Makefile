# Everything a newcomer needs: `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test chaos lint format bench clean help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: $(READY)  ## create .venv and install everything (torch-scatter is built once, about five minutes)

# torch comes first and alone: torch-scatter ships as source and compiles against the torch that is installed.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt "torch>=2.10,<2.14" numpy "setuptools>=77,<82" wheel ninja
	@$(BIN)/python -c 'import torch_scatter' 2>/dev/null || \
	  { echo 'building torch-scatter (about five minutes, once)'; \
	    $(PIP) install --quiet --no-build-isolation -c constraints.txt torch-scatter; }
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## train a real model under Tamiyo's control, over an embedded Redis
	$(BIN)/tamiyo-stream demo $(ARGS)

test: $(READY)  ## run the test suite (on Debian it installs a browser and Prometheus first)
	@tests/install-tools
	$(BIN)/python -m pytest $(ARGS)

chaos: $(READY)  ## kill, cut and corrupt for long: 1,000 kills, every scenario
	$(BIN)/python -m tests.chaos --kills 1000 --size 50 $(ARGS)

lint: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(READY)  ## run every benchmark and write docs/performance.md (a quarter of an hour, on a quiet machine)
	$(BIN)/tamiyo-stream bench page $(ARGS)

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
