# Two commands: `make demo` and `make test`. Both need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO := build/demo

.PHONY: demo test lint clean

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip

$(VENV)/.demo: $(VENV)/bin/pip pyproject.toml
	$(VENV)/bin/pip install --quiet --editable ".[train,eval]"
	touch $@

$(VENV)/.test: $(VENV)/bin/pip pyproject.toml
	$(VENV)/bin/pip install --quiet --editable ".[test]"
	touch $@

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

test: $(VENV)/.test lint
	$(RUN) -m pytest

clean:
	rm -rf build $(VENV)
