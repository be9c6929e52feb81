PYTHON ?= python3
PORT ?= 8000
MODEL ?= demo@champion
BIN := .venv/bin
# Torch first and pinned: whatever asks for it later finds it there.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo demo-loop test lint bench serve clean

demo: .venv/.demo
	$(BIN)/python -m jobs.demo --config jobs/configs/demo.yaml

demo-loop: .venv/.demo
	$(BIN)/python -m jobs.demo_loop --config jobs/configs/loop.yaml

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: .venv/.dev
	$(BIN)/python -m tests.benchmarks.labelling runtimes
	$(BIN)/python -m tests.benchmarks.labelling ray
	$(BIN)/python -m tests.benchmarks.training
	$(BIN)/python -m tests.benchmarks.known_items

serve: .venv/.demo
	$(BIN)/python -m serve.app --model $(MODEL) serve.port=$(PORT)

clean:
	rm -rf .venv .rankstill .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.base: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.demo: .venv/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@
