# make demo   builds an environment and runs the whole pipeline on example data it makes itself
# make test   builds an environment and runs the tests (test-fast: without the slow ones; test-long: those of minutes)
# make lint   checks style
# make figures   draws the pictures of the documentation

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes with a thread each do more than one with two. The files stay whole: their tests share trainings.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --durations 15

.PHONY: demo test test-fast test-long lint figures clean

demo: $(VENV)/.installed
	$(BIN)/samunet_demo

test: $(VENV)/.installed
	$(TEST) -m "not long"

test-fast: $(VENV)/.installed
	$(TEST) -m "not long and not slow"

test-long: $(VENV)/.installed
	$(TEST) -m long

lint: $(VENV)/.linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Those of results need samunet_raw, samunet_preprocessed and samunet_results with fold 0 of 004 and 101, and a Chromium.
figures: $(VENV)/.installed
	for figure in flow network rooms; do $(BIN)/python tools/figures/$$figure.py || exit 1; done
	for figure in strip predicted_dice report; do $(BIN)/python tools/figures/$$figure.py || exit 1; done

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "samunet needs Python 3.11 or newer; say which: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
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
