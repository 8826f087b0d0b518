# Every target that needs the environment goes through `install`, which is a no-op when nothing changed.
#
#   make demo       install, fetch the built-in model once, answer a few prompts together
#   make test       install, lint, run the suite
#
# PYTHON      interpreter to build the environment with (default: the first of 3.11 to 3.14 on the path)
# PIP_EXTRA   more options for pip, such as another index for torch
# TEST_ARGS   more options for pytest

VENV      ?= .venv
PIP_EXTRA ?=
TEST_ARGS ?=
BIN       := $(VENV)/bin
NATIVE    := $(shell find native -name '*.cpp' -o -name '*.h')
STAMP     := $(VENV)/.installed
PIP       := $(BIN)/python -m pip --disable-pip-version-check
# One thread for each test process, and no busy waiting where a test takes more: two pools on two cores stall each other.
PYTEST    := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

DEMO_PROMPTS := \
	"What is the capital of France?" \
	"Write a short poem about a river." \
	"Explain in two sentences why the sky is blue." \
	"Name three planets and one fact about each."

.PHONY: install demo test test-slow test-full lint structure matrix bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile CMakeLists.txt $(NATIVE) | $(BIN)/python
	@echo "Installing torch (about 200 MB for the CPU build; see PIP_EXTRA in the README if pip wants a CUDA build)"
	@$(PIP) install --quiet --constraint constraints.txt $(PIP_EXTRA) torch
	@echo "Installing headrace and what its tests compare with"
	@$(PIP) install --quiet --constraint constraints.txt $(PIP_EXTRA) --editable '.[test]'
	@touch $@
	@echo "Ready: $(BIN)/headrace"

$(BIN)/python:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		for name in python3.11 python3.12 python3.13 python3.14 python3; do \
			if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$name"; break; fi; \
		done; \
	fi; \
	if [ -z "$$python" ]; then \
		echo "headrace needs Python 3.11 or newer and none is on the path. Install one, or run: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV) || { \
		echo "Could not make $(VENV). On Debian and Ubuntu the module is a package of its own: python3-venv" >&2; \
		exit 1; \
	}

# float32, since the model is small and its 4-bit weights lose a little more when they are rounded to bfloat16.
demo: install
	@$(BIN)/headrace generate smollm2 $(DEMO_PROMPTS) --max-tokens 96

test: install lint
	$(PYTEST) -m "not slow and not full" $(TEST_ARGS)

test-slow: install
	$(PYTEST) -m slow $(TEST_ARGS)

test-full: install
	$(PYTEST) -m full $(TEST_ARGS)

lint: install
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The module list in docs/structure.md.
structure: install
	$(BIN)/python docs/structure.py

# docs/support-matrix.md, out of the capability table and what tests/pairs/record.py has kept.
matrix: install
	PYTHONPATH=tests $(BIN)/python -m pairs.matrix

bench: install
	$(BIN)/headrace bench throughput smollm2
	$(BIN)/headrace bench latency smollm2

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
