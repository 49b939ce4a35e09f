# Everything works from a fresh clone: each target makes its own virtual environment first.
#   make demo            the whole product on this machine, in a few minutes; KEEP=1 leaves the cluster up; CLUSTER=kind
#                        runs it on a kind cluster with real kubelets
#   make test            all tests that need no container engine
#   make e2e             a kind cluster with the product installed by Helm, and everything proved on it; KUBECONFIG=...
#                        runs it on an existing cluster
#   make soak            the long versions of tests that are bounded in make test, about an hour; SEED=n chooses another run
#   make audit           known vulnerabilities of the packages that are used; exit code 3: no database could be reached
#   make bench           programs that measure the product against named yardsticks (a quarter of an hour); BENCH=plans runs one
#   make verify          formatting, types, import rules, generated files
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where no image can be pulled, a program beside the checkout builds what kind needs; elsewhere docker and kind in PATH do.
KIND_BUILDER := $(wildcard ../shared/kind-node/kind-node)
ifneq ($(KIND_BUILDER),)
export RETINUE_KIND_BUILDER ?= $(abspath $(KIND_BUILDER))
endif

.DEFAULT_GOAL := help
.PHONY: help demo test simulate soak e2e bench verify audit generate format binaries images load clean

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Retinue needs Python 3.11 or newer: $(PYTHON) was not found (set PYTHON=...)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Retinue needs Python 3.11 or newer: $(PYTHON) is $$($(PYTHON) -V)"; exit 1; }
	@echo "Installing Retinue and its tools into $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV) >/dev/null || { rm -rf $(VENV); echo "Python's venv module does not work: install it (on Debian: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' || { echo "pip could not install the dependencies: is a package index reachable?"; exit 1; }
	@touch $@

binaries: $(READY) ## build the control plane's binaries (once, 5 to 15 minutes; cached)
	@$(BIN)/retinue-emulator loopback build

demo: binaries ## the whole product on this machine; KEEP=1 leaves the cluster up, CLUSTER=kind takes real kubelets
	@$(BIN)/retinue-emulator demo $(if $(KEEP),--keep) $(if $(CLUSTER),--cluster $(CLUSTER)) $(DEMO_ARGS)

test: binaries ## all tests that need no container engine, side by side; TESTS=tests/unit runs a part
	@$(BIN)/retinue-emulator loopback build helm4 helm3 >/dev/null
	@$(BIN)/python -m pytest $(or $(TESTS),-n auto)

# Each line is one long run. Their seeds are printed, and chosen with SEED.
simulate: $(READY) ## random schedules of users and faults against the planners, on all cores; MINUTES=n, SEED=n
	@$(BIN)/python -m tests.simulation --seconds $$(( $(or $(MINUTES),1) * 60 )) $(if $(SEED),--seed $(SEED))

soak: binaries ## the long versions of bounded tests: 1,000 kills, 20 changes of leaders, 15 minutes of simulation; KILLS=n, SEED=n
	@$(MAKE) --no-print-directory simulate MINUTES=$(or $(MINUTES),15)
	RETINUE_KILLS=$(or $(KILLS),1000) $(if $(SEED),RETINUE_SEED=$(SEED)) $(BIN)/python -m pytest -s tests/faults/test_kill_anywhere.py
	RETINUE_SOAK_ROUNDS=20 $(BIN)/python -m pytest -s tests/faults/test_two_replicas.py

e2e: $(READY) ## everything on a kind cluster, or on that of KUBECONFIG; E2E_ARGS="--keep -- -k drain"
	@$(BIN)/python e2e $(E2E_ARGS)

bench: binaries ## figures against named yardsticks, as tables and as JSON in build/bench; BENCH="plans gateway" runs some
	@for name in $(or $(BENCH),plans gateway pools fleet replay); do $(BIN)/python -m bench.$$name $(BENCH_ARGS) || exit 1; done

verify: $(READY) ## formatting, types, import rules, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m retinue.api.crd --check
	$(BIN)/python -m retinue.api.reference --check
	$(BIN)/retinue-operator rbac --check
	$(BIN)/python -m retinue_operator.chart --check

audit: $(READY) ## known vulnerabilities of the packages that are used (asks a database on the network; not part of CI)
	@$(PYTHON) audit $(BIN)/python

generate: $(READY) ## write crds/, docs/reference/, deploy/ and the chart's generated files anew from the code
	$(BIN)/python -m retinue.api.crd
	$(BIN)/python -m retinue.api.reference
	$(BIN)/retinue-operator rbac
	$(BIN)/python -m retinue_operator.chart

format: $(READY) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

images: ## container images of operator, gateway and emulator; see images/build.sh for REGISTRY, BASE_IMAGE, WHEELS
	@images/build.sh

load: ## load those images into the kind cluster KIND_CLUSTER
	@images/load.sh

clean: ## remove the virtual environment and reports (the binaries' cache stays)
	rm -rf $(VENV) build demo-report e2e-report .pytest_cache .mypy_cache .ruff_cache .hypothesis
