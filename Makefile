# make demo: everything from a fresh machine (python3 and make) to a report. make test: the default suite. make test-long: the tests of tests/long.txt, a second and more each (PART=1/3: those of a third of the files). make test-all: the slow ones too, one after another. make docs: the documentation site.
PYTHON ?= python3
PART ?= 1/1
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/installed
READY := $(VENV)/ready

.PHONY: demo test test-long test-all lint docs clean

demo: $(INSTALLED)
	$(BIN)/python -m d3jax.run --config experiments/quickstart.yaml

test: $(READY) lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --durations=20 -m "not slow and not long"

test-long: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --durations=20 -m "long and not slow" --part $(PART)

test-all: $(READY) lint
	XLA_FLAGS=--xla_backend_optimization_level=1 $(BIN)/python -m pytest

docs: $(VENV)/docs
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "d3jax needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.11, say" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile -e .
	touch $@

$(READY): $(INSTALLED)
	$(PIP) --no-compile -e ".[dev]"
	$(BIN)/python -m compileall -j 0 -qq $(VENV)/lib || true
	touch $@

$(VENV)/docs: $(INSTALLED)
	$(PIP) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build site *.egg-info
