# Everything a developer or a newcomer runs. Each target installs what it needs (scripts/prepare)
# or says exactly what is missing. Root is needed for the lab: network namespaces, nftables.

# The system's own Python before any other: the daemon runs under it, also as another user.
export PYTHON ?= $(shell PATH="/usr/bin:$$PATH" command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
BESIDE := -n 2 --no-loadscope-reorder  # who goes beside whom: tests/conftest.py

SEEDS ?= 0:200
MINUTES ?= 10
RUNS ?= 10
ROUNDS ?= 20
HOURS ?= 100

.DEFAULT_GOAL := help
.PHONY: help venv prepare-lab prepare-test prepare-deb prepare-web demo test test-long test-web check \
	coverage sim mutation-drills node-hours bench bench-registrations bench-load churn docs generated \
	deb test-deb test-vagrant clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

venv: $(READY) ## the virtual environment in .venv, with haclusterd installed for development

$(READY): pyproject.toml scripts/prepare
	scripts/prepare venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

prepare-lab:
	scripts/prepare lab

prepare-test:
	scripts/prepare test

prepare-deb:
	scripts/prepare deb

prepare-web:
	scripts/prepare web

demo: prepare-lab $(READY) ## two masters, one slave, live calls; kills both masters in turn
	$(BIN)/haclusterctl lab demo

test: prepare-test $(READY) ## all tests that need no FreeSWITCH but the longest; lab tests where allowed
	$(PYTEST) $(BESIDE) -m 'not freeswitch and not long'

test-long: prepare-test $(READY) ## the longest: docs/by-hand.md to the letter, two versions side by side, two losses, faults without calls, benches
	$(PYTEST) -m 'long and not freeswitch'

test-web: prepare-web $(READY) ## the status page in Chromium, alert rules, hooks, DNS updates
	$(PYTEST) tests/web tests/lab/test_lab_hooks.py tests/unit/test_hooks.py \
		tests/unit/test_courier.py tests/unit/test_dns.py tests/unit/test_contrib.py

check: $(READY) ## lint, format, types, import rules, budgets and links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -q tests/test_architecture.py tests/test_tidy.py tests/test_links.py

# Deterministic tests only: what is covered by luck one day is missing the next.
COVERING := $(wildcard tests/unit/test_core_*.py tests/unit/test_wire*.py) \
	$(wildcard tests/unit/test_replication*.py) tests/unit/test_agent_files.py \
	tests/unit/test_sync_codec.py tests/unit/test_calls.py tests/scenarios/test_scenarios.py

coverage: $(READY) ## 100 % of the branches of core, wire.py and datagram.py, or it fails
	$(BIN)/python -m coverage run -m pytest -q -m 'not slow' $(COVERING)
	$(BIN)/python -m coverage report

sim: $(READY) ## the simulator: SEEDS=A:B seeds of MINUTES simulated minutes each
	$(BIN)/python -m tests.sim --seeds $(SEEDS) --minutes $(MINUTES)

mutation-drills: $(READY) ## break each safety rule on purpose; the simulator must catch it
	$(BIN)/python -m tests.sim.drills

node-hours: $(READY) ## takeovers without a cause in HOURS node-hours of bad weather
	$(BIN)/python -m tests.sim.calm --hours $(HOURS)

bench: prepare-lab $(READY) ## takeover times in the lab, RUNS runs of each fault
	$(BIN)/python -m bench --repeat $(RUNS)

bench-registrations: prepare-lab $(READY) ## 5,000 phones: to a new agent, and after an outage
	$(BIN)/python -m bench.registrations

bench-load: prepare-lab $(READY) ## 1,000 calls, 5,000 phones, 40 calls/s: time without protection, CPU
	$(BIN)/python -m bench.load

churn: prepare-lab $(READY) ## kills at random moments of a wave of calls, ROUNDS times
	$(BIN)/python -m tests.lab.churn --rounds $(ROUNDS)

generated: $(READY) ## the pages in docs/ that are made of the code, written anew
	$(PYTEST) -q --rewrite tests/unit/test_config_reference.py tests/unit/test_metrics.py \
		tests/unit/test_command_reference.py tests/scenarios/test_takeover_fsm.py

docs: $(READY) ## the documentation as a site, in site/; a link to nothing is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -E -a -d build/doctrees \
		-c docs . site
	@echo "site/index.html"

deb: prepare-deb ## the Debian package, in dist/
	scripts/deb

test-deb: ## install, use, remove and purge the package in a fresh Debian 12 (root, debootstrap)
	scripts/test-deb

test-vagrant: ## the walk through vagrant/README.md with chroots for machines (root, debootstrap)
	scripts/test-vagrant

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site
