# Two commands do all the set-up: make train, make test. Each one makes .venv first when it must.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
READY := .venv/.ready

.PHONY: train test minimum check docs format bench gpu soak clean

train: $(READY)
	$(BIN)/burgersgd train optimizer=local_entropy $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m 'not slow' $(ARGS)

# The lowest versions that pyproject.toml allows, in an environment of their own.
minimum:
	test -x .venv-minimum/bin/python || $(PYTHON) -m venv .venv-minimum
	$(PYTHON) scripts/minimum.py > .venv-minimum/constraints.txt
	.venv-minimum/bin/python -m pip install --quiet --constraint .venv-minimum/constraints.txt --editable ".[dev]"
	.venv-minimum/bin/python -m pytest -q -n auto --dist worksteal -m 'not slow' $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: .venv/.bench
	$(BIN)/python scripts/benchmark.py $(ARGS)
	$(BIN)/python scripts/bench_burgers.py
	$(BIN)/python scripts/bench_sweep.py $(if $(findstring --quick,$(ARGS)),--quick)

gpu: $(READY)
	$(BIN)/python scripts/gpu_check.py $(ARGS)
	$(BIN)/python scripts/gpu_bench.py $(ARGS)

soak: $(READY)
	$(BIN)/python scripts/soak.py $(ARGS)
	$(BIN)/python scripts/soak_kills.py
	$(BIN)/python scripts/soak_faults.py
	$(BIN)/python scripts/soak_edits.py
	$(BIN)/python scripts/soak_commands.py
	$(BIN)/python scripts/soak_sweeps.py
	$(BIN)/python scripts/soak_double_starts.py

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

.venv/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[dev,bench]"
	touch $@

clean:
	rm -rf .venv .venv-minimum build dist outputs .pytest_cache .ruff_cache .hypothesis
