# The two commands of a newcomer are `make demo` and `make test`; both build .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint smoke check gpu gpu-wheels clean

demo: $(STAMP)
	$(BIN)/python recipes/smore_offline.py

test: $(STAMP)
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# every table and figure, tiny: that all of it works
smoke: $(STAMP)
	rm -rf build/smoke
	$(BIN)/python recipes/benchmark.py preset=smoke out=build/smoke data_dir=build/datasets
	$(BIN)/python recipes/report.py benchmark=build/smoke

check: lint smoke test

# on a bare machine with a GPU, with its own Python and torch: docs/gpu.md
gpu:
	$(PYTHON) benchmarks/gpu.py $(if $(STAGES),--stages $(STAGES)) $(if $(OUT),--out $(OUT)) $(if $(MINUTES),--minutes $(MINUTES)) $(GPU_ARGS)

# beforehand, where there is a network
gpu-wheels:
	$(PYTHON) benchmarks/gpu.py --gather wheels

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
# the pip that comes with Python 3.10 finds no set of versions for [dev]
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
