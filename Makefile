# Dedicate: a table of contents. Recipes longer than a few lines live in dev/; this file names them.
SHELL := /bin/bash
# Without it a check that is piped into `tail` could not fail.
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE  := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dedicate
PYTHON ?= python3
UV     := $(CACHE)/uv/$(shell sha256sum requirements/uv.txt | cut -c1-16)/bin/uv
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed-$(shell cat requirements/dev.txt pyproject.toml | sha256sum | cut -c1-16)
PYTEST := $(RUN) -m pytest

export UV_CACHE_DIR := $(CACHE)/uv/cache
# OpenMP's threads spin at barriers for milliseconds; several torch processes on few cores then wait for each other.
export GOMP_SPINCOUNT ?= 10000

.PHONY: help demo down clean serve test test-unit test-contract test-runtime test-clients test-proxies test-cluster test-e2e test-gpu test-long \
        lint format extras images bench bench-scenarios bench-steps bench-quality bench-http bench-overload bench-operator soak tools \
        venv lock lock-clients lock-peers

help: ## List the targets
	@sed -nE -e 's/^##@ (.*)/\n\1/p' -e 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 18

DEMO_OPTIONS = $(if $(CONTEXT),--context $(CONTEXT)) $(if $(INGRESS_PORT),--ingress-port $(INGRESS_PORT)) \
               $(addprefix --values ,$(VALUES))

##@ Use
demo: venv ## A real cluster, the chart, an endpoint and a completion through the ingress; INGRESS_PORT=, or CONTEXT= VALUES=
	@$(RUN) -m dev.demo up $(DEMO_OPTIONS)

down: venv ## End everything that demo started; caches stay
	@$(RUN) -m dev.demo down $(DEMO_OPTIONS)

clean: venv ## The same, and remove the caches and the environment
	@$(RUN) -m dev.demo clean
	@rm -rf $(CACHE) $(VENV)

serve: venv ## The runtime alone on 127.0.0.1; MODEL= PORT= KEY= DEDICATE=
	@$(RUN) -m dev.serve

##@ Check
# The tiers with clusters mostly wait, so they run beside the others.
SPREAD = --numprocesses=$(or $(PROCESSES),3) --dist=loadscope --no-loadscope-reorder

test: venv tools ## Every tier below, side by side in PROCESSES= (3), one summary
	@$(PYTEST) $(SPREAD)

test-unit: venv tools ## Pure modules
	@$(PYTEST) tests/unit

test-contract: venv ## What the operator writes is what the runtime parses
	@$(PYTEST) tests/contract

test-runtime: venv ## A live server with a real model
	@$(PYTEST) tests/runtime

test-clients: venv ## Client libraries, each in its own environment, against a live server
	@$(PYTEST) tests/clients

test-proxies: venv ## Streams through nginx, Envoy and Traefik, set up as our routes set them up
	@$(PYTEST) tests/proxies

test-cluster: venv tools ## The operator against a real API server
	@$(PYTEST) tests/cluster

test-e2e: venv tools ## Everything on a real node; needs root
	@$(PYTEST) tests/e2e

test-long: venv tools ## What takes minutes and is deselected in every other target
	@$(PYTEST) $(SPREAD) -m long

test-gpu: venv ## What needs a CUDA device
	@$(PYTEST) tests/gpu

lint: venv ## ruff, mypy, import contracts, layout
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --quiet --check .
	@$(VENV)/bin/mypy operator/dedicate_operator runtime/dedicate_runtime dev bench
	@$(RUN) -m dev.derived check
	@$(VENV)/bin/lint-imports --no-logo | tail -n 3
	@! git ls-files | grep -E '(^|/)operator(/__init__)?\.py$$|^tests/(.*/)?__init__\.py$$' || \
	  { echo "these files shadow a standard-library module or break test imports"; exit 1; }

format: venv ## Format and sort imports
	@$(VENV)/bin/ruff check --quiet --fix --select I .
	@$(VENV)/bin/ruff format --quiet .

extras: venv ## Install each extra alone and import its side
	@$(RUN) dev/check_extras.py

bench: venv ## Every server in turn: a table with ratios, a picture; bench/README.md gives the method
	@$(RUN) -m bench

bench-scenarios: venv ## Long prompts, shared prefixes, the price of sampling and of HTTP
	@$(RUN) -m bench.scenarios

bench-steps: venv ## Where the time of a step goes
	@$(RUN) -m bench.step

bench-http: venv ## What a token costs the API process: rate, lag, memory, first byte of an error at 1,000 streams
	@$(RUN) -m bench.http

bench-quality: venv ## Perplexity of int8 against float32
	@$(RUN) -m bench.quality

bench-overload: venv ## Who is let in, how fast and how fairly, at up to three times the capacity
	@$(RUN) -m bench.overload

bench-operator: venv tools ## The operator beside bare server-side applies of the same objects: time, memory, writes; SIZES=
	@$(RUN) -m bench.scale $(if $(SIZES),--sizes $(SIZES))

soak: venv ## Half an hour of everything at once; SECONDS_= and REQUESTS= bound it
	@$(RUN) -m bench.soak $(if $(SECONDS_),--seconds $(SECONDS_)) $(if $(REQUESTS),--requests $(REQUESTS))

##@ Build
images: venv ## The two container images
	@$(RUN) -m dev.images build all

tools: venv ## The control plane, the node and Helm, built from Go modules
	@$(RUN) -m dev.cluster build

venv: $(STAMP) ## The Python environment in .venv

lock: $(UV) ## Resolve the lock files in requirements/ again
	$(LOCK) --extra operator --extra runtime --extra dev -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt --extra operator -o requirements/operator.txt
	$(LOCK) -c requirements/dev.txt --extra runtime -o requirements/runtime.txt

lock-clients: venv ## Resolve the lock files of tests/clients again
	$(LOCK_CLIENTS) requirements/clients.in -o requirements/clients.txt
	$(LOCK_CLIENTS) -c requirements/dev.txt requirements/lm-eval.in -o requirements/lm-eval.txt
	$(RUN) -m dev.clients lock-node

lock-peers: $(UV) ## Resolve the lock files in bench/peers/ again
	$(LOCK_PEER) bench/peers/llama-cpp.in -o bench/peers/llama-cpp.txt
	$(LOCK_PEER) --universal bench/peers/llama-cpp-build.in -o bench/peers/llama-cpp-build.txt
	$(LOCK_PEER) --override bench/peers/vllm-overrides.in bench/peers/vllm.in -o bench/peers/vllm.txt

LOCK_PEER = $(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate \
            --no-emit-index-url --no-emit-find-links

LOCK_CLIENTS = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
               --no-header --no-annotate --no-emit-index-url --no-emit-find-links

LOCK = $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
       --no-header --no-annotate --no-emit-index-url --no-emit-find-links -c requirements/constraints.in

$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, this is {sys.version}" if sys.version_info < (3, 11) else 0)'
	@echo "==> Installing uv, once"
	@$(PYTHON) -m venv $(dir $(@D))
	@$(dir $@)pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

$(STAMP): $(UV)
	@echo "==> Python environment in $(VENV) (the first time fetches about 3 GB: torch is the CUDA build)"
	@rm -f $(VENV)/.installed-*
	@test -x $(RUN) || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --require-hashes --python $(RUN) requirements/dev.txt
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python $(RUN) --editable .
	@touch $@
