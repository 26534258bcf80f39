# Every target makes the virtual environment if it is missing, and is quick when nothing changed.
#   PYTHON       the Python to make it from (>= 3.11)         MEDRL_STACK  cpu or gpu, instead of what the machine has

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
TYPED  := rl rewards rollouts policies entities

# A run and the tests start many Python processes: each module is compiled once, not by every one of them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast lint format bench bench-gpu clean

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## Set up .venv (CPU or GPU stack, as the machine is) and check it

$(READY): pyproject.toml .ci/install.py .ci/torchvision_cpu_shim.py
	$(PYTHON) .ci/install.py --venv $(VENV)
	@touch $@

quickstart: $(READY) ## Train the small policy on real patients; prints where the report is
	@if [ -e runs/quickstart ]; then \
	    n=1; while [ -e runs/quickstart.$$n ]; do n=$$((n + 1)); done; \
	    mv runs/quickstart runs/quickstart.$$n; echo "the earlier run is now runs/quickstart.$$n"; \
	fi
	$(BIN)/medrl train configs/quickstart.yaml output_dir=runs/quickstart
	@echo "report: $(CURDIR)/runs/quickstart/report.html"

test: $(READY) ## Run all tests (20 minutes on two cores at most)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-fast: $(READY) ## Run the tests that need no engine, no Ray and no training (a minute at most)
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadgroup --no-loadscope-reorder

lint: $(READY) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)

format: $(READY) ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure speed, memory and growth, also against peers (well over an hour on two quiet cores); writes bench/
	$(BIN)/python -m tests.bench

bench-gpu: $(READY) ## Measure packing and its attention on a GPU, against the plain path and TRL; writes bench/gpu.json
	$(BIN)/python -m tests.bench.gpu

clean: ## Remove caches and build output; keeps .venv and runs/
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(TYPED) configs tests .ci -name __pycache__ -prune -exec rm -rf {} +
