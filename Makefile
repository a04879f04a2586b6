# make quickstart   raw text to an evaluated chat model and a report, in .venv, on this machine
# make test         the whole test suite       make lint     formatting, lint, types, stubs
# make bench        benchmarks                 make sanitize the C++ core under ASan, UBSan and TSan
# make clean        remove everything that was made

PYTHON ?= python3
VENV   ?= .venv
RECIPE ?= recipes/quickstart.toml

BIN   := $(VENV)/bin
# The release that the suite is run with; any torch >= 2.11 that is already in the environment is kept.
TORCH := torch==2.13.0
BUILT := $(VENV)/.pylm
DEV   := $(VENV)/.pylm-dev
NATIVE := CMakeLists.txt pyproject.toml pylm/__init__.py $(shell find csrc -type f)

.PHONY: quickstart test lint bench sanitize clean install
.DELETE_ON_ERROR:

quickstart: $(BUILT)
	$(BIN)/pylm run $(RECIPE)

test: $(DEV)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder --benchmark-disable

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --allowlist tools/stubtest_allowlist.txt --ignore-unused-allowlist pylm._core

bench: $(DEV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m pytest bench --benchmark-only -m ''

sanitize: $(DEV)
	$(BIN)/python -m pytest tests/csrc -m slow

install: $(BUILT)

clean:
	rm -rf $(VENV) build dist wheelhouse .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

# torch first and alone, so that no other package chooses its build. On Linux the default build carries
# CUDA; on a machine without a GPU the smaller CPU build is taken from the place that TORCH_SOURCE names:
#   make quickstart TORCH_SOURCE='--index-url URL'   (the URL is on torch's own installation page)
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "pylm needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH_SOURCE) $(TORCH)
	touch $@

$(BUILT): $(VENV)/.torch $(NATIVE)
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

$(DEV): $(VENV)/.torch $(NATIVE)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev,test]'
	touch $@ $(BUILT)
