# The two commands of a newcomer are `make demo` and `make test`; both build .venv first, of PYTHON:
# `make test PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# of `make gpu`: where results go, what is run, minutes that a call may take (0: as long as it takes)
OUT ?= outputs/gpu
STAGES ?= check bench learn
MINUTES ?= 0

.PHONY: demo test lint smoke docs check check-wheel upstream clean same-python gpu gpu-wheels gpu-dry-run

demo: $(STAMP)
	$(BIN)/python recipes/smore_offline.py

test: $(STAMP)
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# every table and Figure 2, tiny: that all of it works
smoke: $(STAMP)
	rm -rf build/smoke
	$(BIN)/python recipes/benchmark.py preset=smoke out=build/smoke data_dir=build/datasets
	$(BIN)/python recipes/report.py benchmark=build/smoke

# the documentation site, without a network; any warning is an error
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/docs/doctrees docs build/docs/html
	@echo "build/docs/html/index.html"

# the suite builds the site as well
check: lint smoke test

# the wheel in clean environments of each Python from 3.10 to 3.13; WHEEL_ARGS="--pythons 3.11" takes fewer
check-wheel: $(STAMP)
	$(BIN)/python tools/check_wheel.py $(WHEEL_ARGS)

# the loss as one file in a clone of pytorch/rl, with its tests run there: make upstream TORCHRL=path
upstream: $(STAMP)
	@test -n "$(TORCHRL)" || { echo "say which clone: make upstream TORCHRL=path"; exit 2; }
	$(BIN)/python upstream/build.py "$(TORCHRL)"

# on a machine with a GPU and its own PyTorch, without a network: docs/gpu.md
gpu:
	$(PYTHON) benchmarks/gpu.py --out "$(OUT)" --stages $(STAGES) --minutes $(MINUTES) $(GPU_ARGS)

# beforehand, where there is a network
gpu-wheels: $(STAMP)
	$(BIN)/python benchmarks/gpu_wheels.py $(GPU_ARGS)

gpu-dry-run: $(STAMP)
	$(BIN)/python benchmarks/gpu.py --dry-run --out build/gpu_dry_run --stages $(STAGES) --again all $(GPU_ARGS)

# `make test PYTHON=python3.12` must not run an environment of another Python without a word
same-python:
	@test "$(origin PYTHON)" = file || test ! -e $(STAMP) || { \
	  version='import sys; print("%d.%d" % sys.version_info[:2])'; \
	  asked="$$($(PYTHON) -c "$$version")" && there="$$($(BIN)/python -c "$$version")" || exit 2; \
	  test "$$asked" = "$$there" || { echo "PYTHON=$(PYTHON) is Python $$asked, but $(VENV) was made of Python $$there:" \
	    "make clean removes it"; exit 2; }; }

$(STAMP): pyproject.toml constraints.txt | same-python
	$(PYTHON) -m venv $(VENV)
# the pip that comes with Python 3.10 finds no set of versions for [dev]
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
