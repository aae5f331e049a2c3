# SPDX-License-Identifier: Apache-2.0
# Two commands matter: `make demo` and `make test`. `make help` lists the rest.

VENV   ?= .venv
PYTHON ?= python3
MODEL  ?=
ARGS   ?=
# Tests that run side by side; a server takes about 2 GB. 0: all in one process.
JOBS   ?= 2

PY := $(VENV)/bin/python
# Written after a complete set-up. Its name changes with this directory, because the editable
# installs in $(VENV) point here.
STAMP := $(VENV)/.sglang-jenga-$(shell pwd | cksum | cut -d' ' -f1)

# Groups of tests (tests/conftest.py) go to processes in their order: servers first.
SIDE_BY_SIDE := -n $(JOBS) --dist loadgroup --no-loadscope-reorder

ROUTER := .venv-router/bin/python
BROWSER := .venv-browser/bin/python

.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast test-gpu gpu-report identity check format docs bench-kernels \
	bench-capacity bench-host-cost bench-serving bench-scale-out scale-router scale-dp scale-tp upstream-check \
	upstream-demo fork clean

help: ## list the commands
	@echo "make demo    set up once, then serve a tiny model from one arena and talk to it"
	@echo "make test    set up once, then run the CPU tests"
	@echo
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' \
		| awk -F'|' '{ printf "%-24s %s\n", $$1, $$2 }'
	@echo
	@echo "Variables: MODEL (a model path or id, for demo), ARGS (more flags for the command behind),"
	@echo "           VENV (environment, default .venv), PYTHON (interpreter to make it with),"
	@echo "           JOBS (tests that run side by side, default 2)"

$(STAMP): pyproject.toml sglang_portable_cpu/pyproject.toml
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
		echo "set-up failed: there is no $(PYTHON) on this machine"; \
		echo "What to do: install Python 3.11 or newer (apt install python3 python3-venv), or name" \
			"one: make demo PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) scripts/make_env.py "$(VENV)" "$(STAMP)"

env: $(STAMP) ## set up the environment only

demo: $(STAMP) ## the two-minute tour; MODEL=path serves your model, ARGS="..." adds server flags
	@$(PY) -m sglang_jenga.demo $(if $(MODEL),--model "$(MODEL)") -- $(ARGS)

test: $(STAMP) $(ROUTER) $(BROWSER) ## the CPU test set
	@$(PY) -m pytest -m "not gpu" $(SIDE_BY_SIDE) $(ARGS)
	@if [ -e /dev/nvidiactl ]; then why="this is the CPU set: make test-gpu runs them here"; \
		else why="this machine has no NVIDIA device (/dev/nvidiactl is missing)"; fi; \
		echo "GPU tests (tests/gpu): not run, $$why."; \
		echo "Full identity matrix: not run, only its subset; all of it: make identity."

test-fast: $(STAMP) ## what is done in three minutes: no servers, nothing slow
	@$(PY) -m pytest -m "not gpu and not server and not slow" $(SIDE_BY_SIDE) $(ARGS)

test-gpu: $(STAMP) ## kernels and a server on CUDA; reports "not run" elsewhere
	@$(PY) -m pytest -m gpu tests/gpu $(ARGS)

gpu-report: $(STAMP) ## all that a first GPU is asked, in half an hour: benchmark/gpu
	@$(PY) scripts/gpu_report.py $(ARGS)

identity: $(STAMP) ## answers equal stock SGLang's: every model, variant, scenario (hours)
	@$(PY) benchmark/identity/run.py $(ARGS)

check: $(STAMP) ## lint, format and type checks
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(STAMP) ## rewrite the sources to the one format
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs: $(STAMP) ## rewrite the tables in docs/ and the dashboard that are made from code
	@$(PY) scripts/docs_tables.py
	@$(PY) scripts/make_dashboard.py

# An environment of its own: the router needs nothing of SGLang, and brings its own web server.
$(ROUTER):
	@$(PYTHON) -m venv .venv-router
	@$(ROUTER) -m pip install --quiet --disable-pip-version-check sglang-router \
		|| { rm -r .venv-router; echo "could not install sglang-router"; exit 1; }

# Chromium in a wheel, about 700 MB on disk, for the page of `sglang-jenga map`. Where there is none
# for this machine its tests are skipped, and say so.
$(BROWSER):
	@$(PYTHON) -m venv .venv-browser
	@$(BROWSER) -m pip install --quiet --disable-pip-version-check "PySide6-WebEngine>=6.12,<7" \
		|| { rm -r .venv-browser; echo "no browser: could not install PySide6-WebEngine"; }

scale-router: $(STAMP) $(ROUTER) ## two servers behind sglang-router; ARGS="--kill-at 0.4" kills one
	@$(PY) -m sglang_jenga.demo.scale router $(ARGS)

scale-dp: $(STAMP) ## one server, two data parallel ranks
	@$(PY) -m sglang_jenga.demo.scale dp $(ARGS)

scale-tp: $(STAMP) ## one server, two tensor parallel ranks
	@$(PY) -m sglang_jenga.demo.scale tp $(ARGS)

bench-kernels: $(STAMP) ## attention kernels on arena views against contiguous pools (CUDA)
	@$(PY) benchmark/kernels/run.py $(ARGS)

bench-capacity: $(STAMP) ## how many requests the same bytes hold; ARGS="--judge DIR"
	@$(PY) benchmark/capacity/run.py $(ARGS)

bench-host-cost: $(STAMP) ## microseconds of host work per step
	@$(PY) benchmark/host_cost/run.py $(ARGS)

bench-serving: $(STAMP) ## stock and jenga servers under one workload
	@$(PY) benchmark/serving/run.py $(ARGS)

bench-scale-out: $(STAMP) $(ROUTER) ## hits and balance behind a router, with dp and with tp
	@$(PY) benchmark/scale_out/run.py $(ARGS)

upstream-check: $(STAMP) ## try every claim of the patches for SGLang
	@$(PY) scripts/upstream.py check

upstream-demo: $(STAMP) ## the demo on SGLang with the patches applied, and what is still wrapped
	@$(PY) scripts/upstream.py count
	@$(PY) scripts/upstream.py demo

fork: $(STAMP) ## SGLang with the patches and the plugin as one source tree for pip; DIR=folder
	@test -n "$(DIR)" || { echo "name a folder that is empty or does not exist: make fork DIR=..."; exit 1; }
	@$(PY) scripts/upstream.py fork "$(DIR)"

clean: ## remove what demo and tests wrote (not the environment)
	rm -rf .demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
