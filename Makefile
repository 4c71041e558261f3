# make demo   builds an environment and runs the whole pipeline on example data it makes itself
# make test   builds an environment and runs all tests (make test-fast leaves out the slow ones)
# make lint   checks style

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast lint clean

demo: $(VENV)/.installed
	$(BIN)/samunet_demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "samunet needs Python 3.10 or newer; say which: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "could not make an environment; on Debian and Ubuntu: sudo apt install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.installed: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.linter: | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet ruff
	@touch $@

clean:
	rm -rf $(VENV) demo_samunet build *.egg-info
