# The words of this project. Needs Python 3.11+, make and a C++ compiler; the rest is installed into $(VENV).

VENV  ?= .venv
PORT  ?= 8000
MODEL ?=
ARGS  ?=

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
BUILD  := pyproject.toml CMakeLists.txt $(wildcard csrc/cpu/*)
ACCEPT := 'import sys; sys.exit(sys.version_info < (3, 11))'
CHECK_COMPILER = command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || \
  command -v clang++ >/dev/null 2>&1 || \
  { echo 'octavo needs a C++ compiler (c++, g++ or clang++); none is on PATH.' >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help run test check bench soak format clean
# A failed install must not leave a stamp behind.
.DELETE_ON_ERROR:

help:  ## Show this list
	@echo 'make WORD [PORT=8000] [MODEL=folder] [ARGS="more flags"]'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

run: $(VENV)/.installed  ## Install what is missing and serve MODEL (default: the bundled one) on PORT
	@exec $(BIN)/octavo serve $(MODEL) --port $(PORT) $(ARGS)

test: $(VENV)/.installed-test  ## Install the test needs and run every test
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-test  ## Format, lint, types, import contracts, house budgets
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/house

bench: $(VENV)/.installed  ## Measure throughput of MODEL (default: the bundled one)
	@$(BIN)/octavo bench throughput $(if $(MODEL),--model $(MODEL)) $(ARGS)

soak: $(VENV)/.installed-test  ## Kills, replacements, bursts and hostile requests at once, 20 minutes (ARGS="--minutes 5")
	PYTHONPATH=tests $(BIN)/python -m hostile.soak $(ARGS)

format: $(VENV)/.installed-test  ## Rewrite the sources as ruff wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what was built (not $(VENV))
	rm -rf build dist $(VENV)/.installed $(VENV)/.installed-test

$(BIN)/python:
	@for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  if $$python -c $(ACCEPT) >/dev/null 2>&1; then \
	    echo "creating $(VENV) with $$($$python --version)"; \
	    exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo 'octavo needs Python 3.11 or newer; none of python3, python3.14 .. python3.11, python is.' >&2; \
	echo "python3 here: $$(python3 --version 2>&1 || echo none). Install one and run make again." >&2; \
	exit 1

# Editable installs: changed Python is picked up at once, changed C++ or metadata installs again.
$(VENV)/.installed: $(BUILD) | $(BIN)/python
	@$(CHECK_COMPILER)
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(BUILD) | $(BIN)/python
	@$(CHECK_COMPILER)
	$(PIP) install --quiet --editable '.[test,dev]'
	@touch $(VENV)/.installed $@
