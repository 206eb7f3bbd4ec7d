# Everything runs in .venv, which the first command makes. Needed: Python >= 3.10, a C++17 compiler, make.
# CUDA kernels are compiled where nvcc is found: for the GPUs of this machine when installing (none: not at all, since the
# tests compile and emulate them separately), for all architectures in a wheel. FINPERCEP_CUDA_ARCHS says otherwise.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo check test sanitize docs bench gpu-check pack wheel clean
.DEFAULT_GOAL := help

LINT = $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache
FAST = not (compile or emulator or interpreter or training or slow)

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed  ## score photos and their faults; ends with demo/index.html to look at
	@$(BIN)/finpercep demo --out demo

check: .venv/installed  ## while you work: lint, formatting, types, imports and the fast tests
	$(LINT)
	$(BIN)/python -m pytest -m "$(FAST)"

test: .venv/installed  ## everything: lint, formatting, types, imports, the site and every test
	$(LINT)
	$(MAKE) --no-print-directory docs
	$(BIN)/python -m pytest --durations=10

sanitize: .venv/installed  ## the C++ operators under AddressSanitizer and UBSan (GCC's), hostile arguments included
	$(BIN)/python -m tests.sanitize

docs: .venv/installed  ## build the site into site/; a broken link or an unknown name is an error
	$(BIN)/mkdocs build --strict --quiet

bench: .venv/installed-bench  ## measure operators and scoring; table, and benchmarks/results/
	$(BIN)/python -m benchmarks

gpu-check:  ## on a CUDA machine: build for its card, measure and check every backend in 8 minutes, with $(PYTHON) as it is
	$(PYTHON) -m benchmarks.gpu

pack: .venv/installed  ## training sets DATA="A B" as one folder OUT of at most LIMIT (40MB), to carry to another machine
	$(BIN)/finpercep pack $(DATA) --out $(OUT) --limit $(or $(LIMIT),40MB)

wheel: .venv/installed  ## build dist/finpercep-*.whl, with CUDA kernels (and +cu<version>) where nvcc is found
	FINPERCEP_CUDA_ARCHS=$(WHEEL_ARCHS) FINPERCEP_REQUIRE_CUDA=$(if $(NVCC),1,0) FINPERCEP_NO_CUDA=$(if $(NVCC),0,1) \
		$(PIP) wheel --no-build-isolation --no-deps -w dist .
	@ls -l dist/*.whl

clean:  ## remove what was built and written; .venv stays, and is brought up to date by the next command
	rm -rf build dist demo site .pytest_cache .ruff_cache .mypy_cache .benchmarks *.egg-info finpercep/_C*.so
	find finpercep kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f .venv/installed .venv/installed-bench

# A compiler is required here, so a build that fails must not pass for an install without extension.
export FINPERCEP_REQUIRE_EXT := 1
export FINPERCEP_CUDA_ARCHS ?= native
WHEEL_ARCHS ?= all
NVCC = $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc) $(shell command -v nvcc))

# Stamps: a second call does nothing, a change of the build files or of the C++ sources installs again.
.venv/tools:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"Python >= 3.10 is needed, {sys.executable} is {v[0]}.{v[1]}; set PYTHON")'
	$(PYTHON) -m venv .venv
	@echo "Installing torch and the build tools: a large download, once"
	$(PIP) install "setuptools>=77" wheel pybind11 numpy torch
	@touch $@

.venv/installed: .venv/tools $(SOURCES)
	@echo "Compiling and installing finpercep"
	$(PIP) install --no-build-isolation -e ".[dev]"
	@$(BIN)/finpercep info | grep 'backend cpp'  # pip hides it when the extension could not be built
	@touch $@

.venv/installed-bench: .venv/installed
	$(PIP) install --no-build-isolation -e ".[bench]"
	@touch $@
