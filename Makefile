# What developers and CI run. Every target sets up what it needs first; `scripts/setup.sh` says what that is.
SHELL := /bin/bash
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Three processes on two cores: half of the time the suite waits for servers. tests/conftest.py says which tests stay together.
IN_PARALLEL := -n 3 --dist loadgroup --no-loadscope-reorder
# Each of the hundreds of interpreters that tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-families faults check format conformance-kube bench clean

help: ## Say what there is to make
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Set everything up: .venv, vLLM for the CPU, the demonstration model, system packages
	@scripts/setup.sh base serve system

demo: ## Build a real model's image, pull it through the agent, serve it with vLLM, ask it something
	@scripts/setup.sh serve
	@$(BIN)/python -m weightyard.demo
	@printf '\n%s\n' 'Next: run `. .venv/bin/activate`, which puts `weightyard` on your PATH, then follow the tour in README.md.'

test: ## Run the tests, with real servers and a real vLLM
	@scripts/setup.sh base serve system
	$(PYTEST) $(IN_PARALLEL) -m "not families"

test-families: ## Serve a tiny model of each family with vLLM and compare it with its source
	@scripts/setup.sh base serve
	$(PYTEST) -n 0 tests/families

test-fast: ## Run the tests that need no servers, no torch and no vLLM, in some minutes
	@scripts/setup.sh base
	HYPOTHESIS_PROFILE=fast $(PYTEST) $(IN_PARALLEL) -p tests.without_torch -m "not servers and not vllm and not torch and not slow"

FAULTS ?= --count 2000
faults: ## Run a campaign of 2,000 faults against the real programs; FAULTS='--seed 1 --kind killed --count 50' chooses
	@scripts/setup.sh base system
	$(BIN)/python -m tests.faults $(FAULTS)

# with `serve`, so that types are checked against torch and the numpy that vLLM pins, on every machine alike
check: ## Check format, lint, types, imports and docs
	@scripts/setup.sh base serve
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases benchmarks scripts $$(find tests -name '*.py' ! -name 'test_*' ! -path '*/families/*')
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_docs.py

format: ## Format the code and apply the linter's safe fixes
	@scripts/setup.sh base
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

conformance-kube: ## Hold a real API server, and with it the tests' fake one, against the cases of tests/conformance: KUBECONFIG=…
	@scripts/setup.sh base
	$(PYTEST) -n 0 -p no:randomly tests/conformance --against "$(or $(KUBECONFIG),$(error KUBECONFIG names the cluster))"

bench: ## Run the benchmarks, side by side with the named peers
	@scripts/setup.sh base serve system
	$(BIN)/python -m benchmarks

clean: ## Remove what the other targets left behind, but not .venv
	rm -rf .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist benchmarks/results
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
