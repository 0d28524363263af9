# Every target sets itself up: needs Python 3.11 to 3.14 with pip, make and, on Python 3.12, a C++ compiler (for compressai).
#   make demo     compress a photograph; then train the tiny preset, all stages, on two CPU cores
#                 DEMO_ARGS="..." goes to pipelines/full.py; training for two minutes:
#                 make demo DEMO_ARGS="--segmentation.steps 33 --mse-codec.steps 150 --mse-codec.last-steps 27 --gan.steps 57
#                     --gan.warmup-steps 40 --gan.last-steps 10 --orp.steps 83 --orp.last-steps 33"
#   make test     does it work: units, numerics, codec, one pipeline with a kill    (TEST_ARGS="..." goes to pytest)
#                 TEST_JOBS=2: files of tests that run at a time, those that start Ray apart
#   make test-all       everything but fault injection
#   make test-faults    kill, cut and fill things under running stages, also on three hosts: an hour
#   make test-numpy2    the quick unit tests with numpy 2, without compressai, as on Python 3.13 and later
#   make bench    the benchmarks, and their table                          (BENCH_ARGS="steps --keep", BENCH_ARGS=--table)
#   make lint | lock | clean | help

PYTHON ?= $(firstword $(foreach minor,11 12 13 14,$(shell command -v python3.$(minor))) python3)
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO_ARGS ?=
TEST_ARGS ?=
TEST_JOBS ?= 2
BENCH_ARGS ?=

# Tests that start Ray need the cores for themselves: Ray gives its processes seconds to start. Status 5: no tests of a kind.
define tests
	$(PY) -m pytest -n $(TEST_JOBS) --dist loadfile -m "not ray and $(1)" $(TEST_ARGS) || [ $$? -eq 5 ]
	$(PY) -m pytest -m "ray and $(1)" $(TEST_ARGS) || [ $$? -eq 5 ]
endef

.PHONY: demo test test-all test-faults test-numpy2 lint bench lock clean setup help
.DEFAULT_GOAL := demo

setup: $(STAMP)

demo: $(STAMP)
	@mkdir -p outputs/demo
	$(VENV)/bin/egic compress egic/demo/photographs/coffee.jpg --quality 50 --stats --force -o outputs/demo/coffee.egic
	$(VENV)/bin/egic decompress outputs/demo/coffee.egic --force -o outputs/demo/coffee.png
	$(PY) pipelines/full.py tiny $(DEMO_ARGS)

test: $(STAMP)
	$(call tests,not slow and not faults)

test-all: $(STAMP)
	$(call tests,not faults)

test-faults: $(STAMP)
	$(PY) -m pytest -m faults $(TEST_ARGS)

test-numpy2: $(STAMP)
	mkdir -p $(VENV)-numpy2
	sed '/"compressai/d' pyproject.toml > $(VENV)-numpy2/pyproject.toml
	$(VENV)/bin/uv venv --quiet --allow-existing --python $(PY) $(VENV)-numpy2
	$(VENV)/bin/uv pip install --system-certs --python $(VENV)-numpy2/bin/python -r $(VENV)-numpy2/pyproject.toml \
	    --extra train --extra cloud --extra demo --extra hub --extra dev "numpy>=2"
	$(VENV)-numpy2/bin/python -m pytest tests/unit -m "not slow and not ray and not faults" $(TEST_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(STAMP)
	$(PY) tests/bench/all.py $(BENCH_ARGS)

# Rewrite the lock from pyproject.toml, for every Python and platform at once, without TensorFlow, which only an import needs. Every file of a release
# is listed, so that any platform finds its own.
lock: $(STAMP)
	$(VENV)/bin/uv pip compile --system-certs --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
	    --python-version 3.11 --extra train --extra cloud --extra demo --extra hub --extra dev pyproject.toml --output-file requirements.txt

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
	rm -rf $(VENV) $(VENV)-numpy2 build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
