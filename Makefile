# make demo   learn to swing a pendulum up from pixels, and look at the dream
# make test   everything a change must pass; make test-slow adds the learning tests
# make lint   ruff and mypy

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint bench clean

demo: .venv/base
	$(BIN)/reverie train dreamer_v1 --env Pendulum-v1 --preset laptop --run runs/demo

test: .venv/test
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: .venv/test
	$(BIN)/pytest -m slow

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/test
	for script in layers update replay envs planning model_free collector i2a dream; do $(BIN)/python benchmarks/$$script.py; done
	$(BIN)/python benchmarks/table.py

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/test: .venv/base
	$(PIP) -e '.[test]'
	touch $@

.venv/dev: .venv/test
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
