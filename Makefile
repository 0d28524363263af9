# Every target sets itself up: needs Python 3.11+ with pip, make and a C++ compiler (compressai's source build on Python 3.12+).
#   make demo     train the tiny preset, all stages, on two CPU cores      (DEMO_ARGS="..." goes to pipelines/full.py)
#   make test     the default tests                                        (TEST_ARGS="..." goes to pytest)
#   make test-faults    kill, cut and fill things under running stages, also on three hosts: an hour
#   make bench    the benchmarks, and their table                          (BENCH_ARGS="steps --keep", BENCH_ARGS=--table)
#   make lint | lock | clean | help

PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3.12),$(shell command -v python3.13),python3)
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: demo test test-faults lint bench lock clean setup help
.DEFAULT_GOAL := demo

setup: $(STAMP)

demo: $(STAMP)
	$(PY) pipelines/full.py tiny $(DEMO_ARGS)

test: $(STAMP)
	$(PY) -m pytest $(TEST_ARGS)

test-faults: $(STAMP)
	$(PY) -m pytest -m faults $(TEST_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(STAMP)
	$(PY) tests/bench/all.py $(BENCH_ARGS)

# Rewrite the lock from pyproject.toml, without TensorFlow, which only an import needs. Every file of a release is listed, so that any platform finds its own.
lock: $(STAMP)
	$(VENV)/bin/uv pip compile --system-certs --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
	    --python-version 3.11 --extra train --extra cloud --extra demo --extra dev pyproject.toml --output-file requirements.txt

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "EGIC needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# uv installs in half a minute what pip takes minutes for; its own version and hash come from the same lock.
	@# It gets the system's certificates, as pip does on a machine behind a proxy, and where it fails pip has its try.
	sed -n '/^uv==/,/# via/p' requirements.txt > $(VENV)/uv.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt && \
	    $(VENV)/bin/uv pip install --system-certs --python $(PY) --require-hashes -r requirements.txt || \
	    { echo "uv could not install the lock: using pip"; $(PY) -m pip install --require-hashes -r requirements.txt; }
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

help:
	@sed -n 's/^#   //p' Makefile

# Environment and caches only: runs, models and pictures stay.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
