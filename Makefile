# make book | map | test | lab | bench | notebooks | oldest | clean          (`make` alone explains them)
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
PYTHON_OLDEST ?= python3.11
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
BIN := .venv/bin
READY := .venv/.ready
OLDEST := .venv-oldest
INDEX := _build/html/index.html

export CHROMIUM
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

# matplotlib's list of fonts, made once below: its notice, or a HOME that nobody can write to, would
# stand in a page and fail the strict build
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib
ifeq ($(shell [ -w "$$HOME" ] && echo yes),)
export HOME := $(CURDIR)/.venv/home
endif

# the tests of the house rather than of the library
HOUSE := bibliography bookmap bundle colab executed layers names notebooks packaging page_meta prose_numbers

files = $(shell find $(1) -type f -not -path '*/.*' -not -path '*/__pycache__/*' 2>/dev/null)
# what a notebook's result depends on beside its own cells, and what the book is made of
LIBRARY := $(call files,fractal_lib)
SOURCES := $(call files,book _ext _static) _config.yml _toc.yml tools/bookmap.py tools/bundle.py

.PHONY: help book map test lab bench notebooks oldest clean lint unit pages outputs colab browser fresh chromium

help:           ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

book: _build/.built ## build the book into _build/html
	@echo "The book is built. Open file://$(CURDIR)/$(INDEX)"

map:            ## print how long each page takes to read, how heavy it is, how long it runs
	@$(PYTHON) tools/bookmap.py

test: chromium lint unit fresh ## everything: style, units, doctests, a fresh book, its outputs, browser, Colab
	$(BIN)/pytest -n 2 tests/book tests/test_colab.py

lab: $(READY)   ## open the book's notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=book

bench: $(READY) ## time all that is timed (some minutes); one: make bench CASE=heads ARGS="--json FILE"
	$(BIN)/python -m fractal_lib.benchmark $(if $(CASE),run $(CASE),speed) $(ARGS)

notebooks: $(READY) ## put the notebooks in their stored form (see CONTRIBUTING.md)
	$(BIN)/python tools/notebooks.py store

oldest: $(OLDEST)/.ready ## units and doctests with the oldest versions that pyproject.toml admits
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -n 2 --dist loadfile tests --ignore=tests/book \
	    $(HOUSE:%=--ignore=tests/test_%.py)
	$(OLDEST)/bin/pytest --doctest-modules fractal_lib

clean:          ## remove everything that make made, .venv included
	rm -rf .venv $(OLDEST) _build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the parts of `make test`, each also a command of its own ------------------------------------

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python --level error

unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests \
	    --ignore=tests/book --ignore=tests/test_colab.py
	$(BIN)/pytest --doctest-modules --doctest-glob=README.md fractal_lib README.md

# every notebook run anew by nbval alone, which `make test` does not: it checks what the book ran.
# loadscope keeps the cells of a notebook in one worker. Two kernels that start at once may choose one
# port, and every cell of one of them fails: they are tried once more. A cell that is wrong fails again.
NBVAL = OMP_NUM_THREADS=1 $(BIN)/pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=180 \
	    --dist loadscope -n 2
pages: $(READY)
	$(NBVAL) book || $(NBVAL) --last-failed book

fresh: $(READY)
	rm -rf _build
	$(MAKE) outputs

# of what the book's notebooks put out when the book was built: nbval's checks, and what the prose says
outputs: book
	PYTHONPATH=tools $(BIN)/pytest -p executed book
	$(BIN)/python tools/prose_numbers.py

chromium:
	@[ -x "$(CHROMIUM)" ] || { echo "The browser test needs Chromium: apt-get install chromium, or say where it is: make test CHROMIUM=/path/to/chrome"; exit 1; }

browser: chromium book
	$(BIN)/pytest tests/book

colab: $(READY)
	$(BIN)/pytest tests/test_colab.py

# ---- files ---------------------------------------------------------------------------------------

# Pages are always made anew: an incremental second build would not report what failed in the first.
# Notebooks that did not change are taken from the cache, unless the library did.
_build/.built: $(READY) _build/.library $(SOURCES)
	$(BIN)/python tools/executed.py
	rm -rf _build/html _build/.doctrees
	$(BIN)/jupyter-book build . -n -W --keep-going
	$(BIN)/python tools/bundle.py
	@touch $@

_build/.library: $(READY) $(LIBRARY)
	rm -rf _build/.jupyter_cache
	@mkdir -p _build && touch $@

$(READY): requirements.txt constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed, and there is no $(PYTHON); say which one to take: make book PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, and $(PYTHON) is older; say which one to take: make book PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt -c constraints.txt
	$(BIN)/pip install -qq --no-deps --no-build-isolation --editable .
	@mkdir -p .venv/home && $(BIN)/python -c 'import matplotlib.font_manager' 2>/dev/null
	@touch $@

$(OLDEST)/.ready: oldest.txt pyproject.toml
	@command -v $(PYTHON_OLDEST) >/dev/null || { echo "Python 3.11 is needed, and there is no $(PYTHON_OLDEST); say which one to take: make oldest PYTHON_OLDEST=/path/to/python3.11"; exit 1; }
	[ -x $(OLDEST)/bin/python ] || $(PYTHON_OLDEST) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet -r oldest.txt
	$(OLDEST)/bin/pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@
