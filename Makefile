# Each target installs what it needs into .venv, and is one line that you could type yourself.
PYTHON ?= python3
BIN := .venv/bin
STMUL := $(BIN)/stmul
SPLIT ?= 1
option = $(if $($(1)),$(2) "$($(1))")
setting = $(if $($(1)),--set "$(2)=$($(1))")
# As option, but only from make's own command line: some shells export a HOST of theirs.
said = $(if $(filter command,$(origin $(1))),$(2) "$($(1))")

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo shards lmdb serve train evaluate report test tests check lint types bench bench-remote bench-network bench-flow bench-packing bench-steps results

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  DATASET=ucf101|hmdb51|folders|extracted|drawn  DATA=folder  SPLIT=1  FLOW=tvl1|dis|farneback|raft  FLOW_SCALE=0.5'
	@echo '  LIMIT=n  CLASSES=a,b'
	@echo '  CONFIG=name or file  SHARDS=folder, LMDB, http:// or s3:// URL  STAGES=auto|scratch|imagenet|base|joint  ARGS="..."'

setup: .venv/.installed  ## install into .venv

setup-dev: .venv/.installed-dev

.venv/.installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or later, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; $(PYTHON) is `$(PYTHON) --version`. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks venv. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing into .venv (PyTorch among it: about 6 GB, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# The peers want an older numpy: they get an environment of their own, which sees .venv behind it.
.venv-bench/.installed: .venv/.installed-dev
	@test -x .venv-bench/bin/python || $(BIN)/python -m venv .venv-bench
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > "$$(.venv-bench/bin/python -c 'import site; print(site.getsitepackages()[0])')/behind.pth"
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

demo: setup  ## draw videos, build shards, train, test, write a report: minutes, no GPU
	$(STMUL) preprocess shards -c demo --split $(SPLIT) $(ARGS)
	$(STMUL) train -c demo
	$(STMUL) test

shards: setup  ## videos -> tar shards of SPLIT (DATASET= DATA= FLOW= FLOW_SCALE= LIMIT= CLASSES=)
	$(STMUL) preprocess shards $(call option,CONFIG,-c) --split $(SPLIT) $(call option,DATASET,--dataset) \
	  $(call option,DATA,--root) $(call option,FLOW,--flow) $(call option,FLOW_SCALE,--flow-scale) $(call option,LIMIT,--limit) $(call option,CLASSES,--classes) $(ARGS)

lmdb: setup  ## the shards built last (or SHARDS=) as an LMDB beside them
	@from="$(SHARDS)"; from="$${from:-$$($(STMUL) shards latest)}" && $(STMUL) shards copy "$$from" "$$from.lmdb"

serve: setup  ## serve the splits below data (or SERVE=) to the network, read-only (HOST= PORT=)
	$(STMUL) shards serve "$(or $(SERVE),data)" $(call said,HOST,--host) $(call said,PORT,--port) $(ARGS)

train: setup  ## train on the shards built last, or SHARDS=
	$(STMUL) train $(call option,CONFIG,-c) $(call setting,SHARDS,data.shards) $(call setting,STAGES,train.stages) $(ARGS)

evaluate: setup  ## test the network of the newest run, or of several splits (SPLITS=1,2,3)
	$(STMUL) test $(call option,SPLITS,--splits) $(ARGS)

report: setup  ## write the newest run's report again
	$(STMUL) report $(ARGS)

test: tests  ## the project's tests, then the network of the newest run, if there is one
	@if ls experiment/*/run.json >/dev/null 2>&1; then $(STMUL) test $(ARGS); else echo "no run to test yet: make demo, or make train"; fi

tests: setup-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

check: lint types tests  ## everything a change must pass

lint: setup-dev  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev  ## mypy --strict on the packages
	$(BIN)/mypy

bench: .venv-bench/.installed  ## measure the loader beside others (SHARDS= ARGS="--half ... --out docs/benchmarks/NAME")
	@shards="$(SHARDS)"; .venv-bench/bin/python -m tests.bench.loader --shards "$${shards:-$$($(STMUL) shards latest)}" $(ARGS)

bench-remote: .venv-bench/.installed  ## the same for streaming (SHARDS= ARGS="--out docs/benchmarks/NAME"): 20 minutes
	@shards="$(SHARDS)"; .venv-bench/bin/python -m tests.bench.remote --shards "$${shards:-$$($(STMUL) shards latest)}" $(ARGS)

bench-network: setup-dev  ## the same for the network: minutes on a CPU
	$(BIN)/python -m tests.bench.network $(ARGS)

bench-flow: .venv-bench/.installed  ## the same for optical flow (DATA=folder of videos ARGS="--out docs/benchmarks/NAME"): 20 minutes
	@.venv-bench/bin/python -m tests.bench.flow $(if $(DATA),--data "$(DATA)",--drawn) $(ARGS)

bench-packing: setup-dev  ## the same for packing extracted frames (SHARDS= ARGS=): minutes
	@shards="$(SHARDS)"; $(BIN)/python -m tests.bench.packing --shards "$${shards:-$$($(STMUL) shards latest)}" $(ARGS)

bench-steps: setup-dev  ## training steps from shards beside the same ones from memory (SHARDS= ARGS="-c CONFIG"): minutes
	@shards="$(SHARDS)"; $(BIN)/python -m tests.bench.steps --shards "$${shards:-$$($(STMUL) shards latest)}" $(ARGS)

results: setup-dev  ## train and test every variant with every seed, write the page (ARGS="--folder F --real NAME=SHARDS"): hours
	$(BIN)/python -m tests.bench.results $(ARGS)
