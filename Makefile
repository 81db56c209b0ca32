# Each target first makes the checkout ready (tools/setup.sh), which is quick when there is nothing to do.

PYTHON ?= python3
MINUTES ?= 10
DOC_ROOT ?=
export PYTHON DOC_ROOT

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help dev test lint format demo bench-quick soak clean

# -P: not the folder `batchbridge` of the checkout, which has no compiled modules, but the installed package.
RUN := .venv/bin/python -P
# vmlinux.h is generated.
C_FILES := $(filter-out %/vmlinux.h,$(wildcard $(addsuffix /*.[ch],bench cython_ext examples kernel_side tests/support)))

help:
	@echo 'make dev          install what is missing, build, and leave a ready .venv/bin/batchbridge'
	@echo 'make test         the tests; ARGS="-k name" goes to pytest'
	@echo 'make lint         formatting, lint and types of everything written here'
	@echo 'make format       put the formatting right'
	@echo 'make demo         measure on real documents and draw batching.png; DOC_ROOT=DIR serves other documents'
	@echo 'make bench-quick  what batching gains, in three minutes; results and plots go to bench-quick/'
	@echo 'make soak         load for MINUTES=$(MINUTES) minutes'
	@echo 'make clean        remove all that was made here'
	@echo
	@echo 'As root on Debian, missing packages are installed; otherwise they are named.'
	@echo 'PYTHON=... chooses the interpreter.'

dev:
	@tools/setup.sh dev
	@echo 'Ready: .venv/bin/batchbridge'

# What needs no quiet machine runs on all processors at once, the rest by itself.
TESTS_TOGETHER := $(addprefix tests/,unit conformance differential typing) $(patsubst %,tests/integration/test_%.py,\
	answer_cache asgi client_share clients fallbacks handlers large_answers line_protocol state_tables upstream wsgi)
TESTS_ALONE := $(filter-out $(TESTS_TOGETHER),$(wildcard tests/integration/test_*.py)) tests/kernel

test:
	@tools/setup.sh test
ifdef ARGS
	.venv/bin/pytest $(ARGS)
else
	.venv/bin/pytest -n auto --dist worksteal $(TESTS_TOGETHER)
	.venv/bin/pytest $(TESTS_ALONE)
endif

# The C compiler's part, -Wall -Werror, is the build's. mypy sees the tree as it is installed: compiled modules, by
# their stubs, inside the package. cython-lint looks for pycodestyle on the path.
lint:
	@tools/setup.sh lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	PATH="$$PWD/.venv/bin:$$PATH" cython-lint cython_ext
	$(if $(C_FILES),.venv/bin/clang-format --dry-run -Werror $(C_FILES))
	@rm -rf build/types
	@mkdir -p build/types/batchbridge
	@ln -s "$$PWD"/batchbridge/* "$$PWD"/cython_ext build/types/batchbridge/
	cd build/types && ../../.venv/bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p batchbridge

format:
	@tools/setup.sh lint
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	$(if $(C_FILES),.venv/bin/clang-format -i $(C_FILES))

demo:
	@tools/setup.sh demo
	$(RUN) -m bench.demo --root "$$(tools/setup.sh doc-root)" --output batching.png

bench-quick:
	@tools/setup.sh bench
	@mkdir -p bench-quick
	.venv/bin/batchbridge bench batching --quick --output bench-quick/batching.msgpack
	.venv/bin/batchbridge plot bench-quick/batching.msgpack -o bench-quick

soak:
	@tools/setup.sh dev
	$(RUN) -m bench.soak --minutes $(MINUTES)

clean:
	rm -rf .venv build batching.png bench-quick .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
