# `make demo` and `make test` set everything up first. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= data
RUNS ?= runs
PYTEST_WORKERS ?= 3  # on 2 cores: many tests wait for processes
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadscope --no-loadscope-reorder -m 'not long'
MLFLOW_STORE ?= runs/mlflow-server
MLFLOW_PORT ?= 5000

.PHONY: help setup demo pacs-demo test test-fast test-long coverage lint mutation docs docs-reference mlflow-server clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

setup: $(READY)  ## a virtual environment in .venv with all pinned packages (3 to 5 minutes)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "medopt needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing medopt and its pinned packages (about 2.3 GB) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## draw the embedded study, run the whole pipeline on it, show what was reached
	$(BIN)/medopt phantom $(DATA)/phantom
	@# One thread: this network is too small to gain from two (245 against 275 images/s), and on a busy machine two
	@# that wait for each other are half as fast as one.
	OMP_NUM_THREADS=1 $(BIN)/medopt run pipelines/phantom.yaml --data $(DATA) --runs $(RUNS)

pacs-demo: $(READY)  ## the demo's release beside a real Orthanc (apt package): ten drawn studies in, their results back
	OMP_NUM_THREADS=1 $(BIN)/medopt pacs demo --runs $(RUNS)

lint: $(READY)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint  ## all checks, and all tests but the longest (20 to 45 minutes on 2 cores)
	$(TESTS)

coverage: $(READY)  ## the same tests with line coverage, over 90 % (counting lines takes 40 % longer)
	$(BIN)/coverage erase
	$(TESTS) --cov --cov-report=term:skip-covered --cov-fail-under=90

test-fast: $(READY)  ## the inner loop: no whole runs, trained networks, servers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope -m fast

test-long: $(READY)  ## what takes longest: the team's MLflow server in a browser, sweeps on a cluster, a disk that fills up
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadscope -m long

mutation: $(READY)  ## small changes of the critical modules that no test notices, and the score of each (half an hour)
	$(BIN)/python tools/mutate.py

docs: docs-reference  ## the documentation as pages in site/, every link checked
	$(BIN)/mkdocs build --strict

docs-reference: $(READY)  ## the pages that are written from the command line and the schemas
	$(BIN)/python docs/generate.py

mlflow-server: $(READY)  ## a team's MLflow on loopback, with Debian's PostgreSQL and sign-in, to try (Ctrl-C ends it)
	PYTHON=$(abspath $(BIN)/python) exec mlflow/loopback.sh $(MLFLOW_STORE) $(MLFLOW_PORT)

clean:  ## remove the environment and the caches; runs and data stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
