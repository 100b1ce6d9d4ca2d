# Two commands after `git clone`: `make run` and `make test`. Needs python >= 3.11, make and (Linux) g++.

VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/default
WORKERS ?= 2
# A Mac does not pretend to be one.
PRETENDED := $(if $(filter Darwin,$(shell uname)),,--pretend-mac)
# The first python that is new enough and can make a virtual environment; PYTHON=... overrides.
PYTHONS := $(PYTHON) python3.13 python3.12 python3.11 python3 python3.14

# Tests start some hundred processes; without its bytecode each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-mac slowest bench detect parity docs lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## train the default recipe into runs/default, verified before and after; again: resume
	@$(BIN)/kssm train default --out $(RUN) $(if $(wildcard $(RUN)/checkpoints/LATEST),--resume)

test: $(VENV)/.installed ## the tests, on 2 workers
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal

test-all: $(VENV)/.installed ## the slow tests too, and the fast ones once more on a pretended Mac
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not network"
	@$(if $(PRETENDED),$(BIN)/pytest -n $(WORKERS) --dist worksteal $(PRETENDED))

test-mac: $(VENV)/.installed ## every fast test function once, on a pretended Mac
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal $(PRETENDED) --one-of-each

bench: $(VENV)/.installed ## forms and architectures side by side on this machine, into benchmarks/results
	@$(BIN)/python -m benchmarks

detect: $(VENV)/.installed ## every failed run and sabotage against every check, into docs/detection.md
	@$(BIN)/python -m kssm_mlx.experiments.detection

# Not --quiet, which hides warnings from --strict too.
docs: $(VENV)/.installed ## the documentation as a site, into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

# torch is only a witness here, so it is not among the tests' ordinary requirements.
parity: $(VENV)/.installed ## recompute the upstream logits with transformers and compare them with the frozen ones
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[parity]'
	@$(BIN)/python -m tests.parity.regenerate

lint: $(VENV)/.installed ## ruff's rules and format, types, the workflows' form and their safety
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/zizmor --quiet --offline .github/workflows

slowest: $(VENV)/.installed ## the tests, and which cost most CPU
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal --slowest 25

clean: ## remove what make made, except runs/
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for p in $(PYTHONS); do \
	  if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$p"; exec $$p -m venv $(VENV); \
	  fi; \
	done; \
	echo "no python >= 3.11 with venv among: $(PYTHONS); install one or say make PYTHON=/path/to/python" >&2; exit 1

# The stamp is newer than pyproject.toml exactly when everything it asks for is installed. Python compiles what
# it imports, once; pip would compile ten thousand files, of which most are never imported.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing kssm-mlx and what it needs into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[test]'
	@touch $@
