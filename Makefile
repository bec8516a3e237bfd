# Dedicate: a table of contents. Long recipes live in dev/; this file only names them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

CACHE  := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dedicate
PYTHON ?= python3
UV     := $(CACHE)/uv/$(shell sha256sum requirements/uv.txt | cut -c1-16)/bin/uv
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed-$(shell cat requirements/dev.txt pyproject.toml | sha256sum | cut -c1-16)

export UV_CACHE_DIR := $(CACHE)/uv/cache
export UV_LINK_MODE ?= hardlink

.PHONY: help venv lock

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

##@ Environment
$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@echo "==> installing uv, once"
	@$(PYTHON) -m venv $(dir $(@D))
	@$(dir $@)pip install --quiet --require-hashes -r requirements/uv.txt
	@touch $@

$(STAMP): $(UV)
	@echo "==> Python environment in $(VENV) (the first time fetches about 3 GB: torch with CUDA)"
	@rm -f $(VENV)/.installed-*
	@test -x $(RUN) || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --require-hashes --python $(RUN) requirements/dev.txt
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python $(RUN) --editable .
	@touch $@

venv: $(STAMP) ## Make or refresh the Python environment in .venv

LOCK = $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
       --no-header --no-annotate --no-emit-index-url --no-emit-find-links -c requirements/constraints.in

lock: $(UV) ## Resolve the lock files in requirements/ again
	$(LOCK) --extra operator --extra runtime --extra dev -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt --extra operator -o requirements/operator.txt
	$(LOCK) -c requirements/dev.txt --extra runtime -o requirements/runtime.txt
