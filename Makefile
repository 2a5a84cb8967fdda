# Everything sets itself up: `make demo` and `make test` work on a fresh Debian or Ubuntu machine with Python 3.11 or newer.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
ONCE ?=
SEEDS ?= 1000
FIRST ?= 0

PYTHON_PACKAGES := python3-venv
SERVERS := curl openssl procps postgresql pgbouncer redis-server redis-sentinel prometheus prometheus-alertmanager prometheus-postgres-exporter

.PHONY: help install servers browser kubernetes-servers demo test test-kubernetes test-image simulate lint format bench soak lock clean

help: ## show this
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

install: .venv/installed ## make .venv with the locked dependencies and the project itself

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || scripts/system-packages $(PYTHON_PACKAGES)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

servers: ## install the servers and tools that tests and demo run against
	@scripts/system-packages $(SERVERS)

browser: install ## install the browser that tests of the web interface run in
	@scripts/browser

kubernetes-servers: ## build a Kubernetes API server, controllers and scheduler, once a machine (about five minutes)
	@scripts/kubernetes-servers

demo: install servers ## run the main job for real; ONCE=1 ends it with status 0 only if every step happened
	@$(BIN)/python -m demo $(if $(ONCE),--once)

test: install servers browser ## run every test with its real servers, but for those that need Kubernetes
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore=tests/kubernetes

test-kubernetes: install kubernetes-servers ## run the tests on a real Kubernetes API server, with simulated nodes
	$(BIN)/python -m pytest tests/kubernetes -n 2 --dist loadfile

test-image: ## build the container image without an engine or a registry, and start what is in it; as root, a few minutes
	@scripts/try-image

simulate: install ## crash, delay and cut off the engine by SEEDS seeds; ends with status 1 and the seed at the first violation
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

lint: install ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## write the code as ruff wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install servers ## measure, and print ratios against the baselines of benchmarks/
	$(BIN)/python -m benchmarks

soak: install servers ## two replicas, MINUTES minutes of alerts and faults, then a reckoning; status 1 when anything disagrees
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30)

lock: ## resolve pyproject.toml into requirements.lock
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra speed --extra dev pyproject.toml -o requirements.lock

clean: ## remove what was built
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
