# Every target sets itself up: a virtual environment in .venv with pinned packages, nothing else.
PYTHON ?= python3
TASK ?= mnli
NAME ?= xtc-6l-w1a8
DEVICES ?= 1
RUNS ?= runs
SUITE ?= data
FILE ?= experiments/sweeps/arms.yaml
ARGS ?=
BIN := .venv/bin
SETTINGS = task=$(TASK) run.dir=$(RUNS) trainer.devices=$(DEVICES) $(ARGS)

# Images of Python often set it. Each process would compile the libraries anew, which takes longer than importing them.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help setup demo test check recipe multistage singlestage compare sweep bench results chaos sanitize docs clean

help:
	@echo "make setup                          virtual environment with pinned packages"
	@echo "make demo                           both pipelines on the embedded task, then the comparison"
	@echo "make multistage|singlestage TASK=mnli DEVICES=1 RUNS=runs ARGS=\"key=value …\""
	@echo "make recipe NAME=xtc-6l-w1a8 TASK=mnli   a published recipe; docs/recipes.md lists them"
	@echo "make compare TASK=mnli RUNS=runs    the two pipelines' runs side by side"
	@echo "make sweep FILE=experiments/sweeps/arms.yaml ARGS=\"key=value …\"   the trials of a wandb sweep file"
	@echo "make bench SUITE=data|overhead|training|sizes|inference|coverage   speed, memory, file sizes, intervals; into build/bench"
	@echo "make chaos                          both demo pipelines in two processes, killed 25 times; into build/chaos"
	@echo "make sanitize                       the engine on random shapes under the address and undefined-behaviour sanitizers"
	@echo "make results                        tables and pictures of the studies in experiments/ anew from their records"
	@echo "make docs                           docs/configuration.md anew from the settings' docstrings"
	@echo "make test                           the test suite"
	@echo "make check                          ruff, ruff format --check and mypy"

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Python compiles what it imports first. Several processes of tests would each compile the same.
.venv/compiled: .venv/installed
	$(BIN)/python -c "import bitkd.pipeline.runner, bitkd.tracking"
	@touch $@

demo: setup
	$(BIN)/bitkd run pipeline=multistage task=demo run.dir=$(RUNS)
	$(BIN)/bitkd run pipeline=singlestage task=demo run.dir=$(RUNS)
	$(BIN)/bitkd compare $(RUNS)/demo/multistage $(RUNS)/demo/singlestage --out $(RUNS)/reports/demo

recipe: setup
	$(BIN)/bitkd run recipe=$(NAME) $(SETTINGS)

multistage singlestage: setup
	$(BIN)/bitkd run pipeline=$@ $(SETTINGS)

compare: setup
	$(BIN)/bitkd compare $(RUNS)/$(TASK)/multistage $(RUNS)/$(TASK)/singlestage --out $(RUNS)/reports/$(TASK)

sweep: setup
	$(BIN)/bitkd sweep $(FILE) run.dir=$(RUNS) $(ARGS)

bench: setup
	$(BIN)/python experiments/bench/$(SUITE).py $(ARGS)

results: setup
	$(BIN)/python -m experiments.results

chaos: setup
	$(BIN)/python experiments/chaos/chaos.py --out build/chaos $(ARGS)

sanitize:
	@mkdir -p build
	$(CXX) -g -O1 -march=native -ffp-contract=off -fopenmp -std=c++17 -fsanitize=address,undefined -fno-sanitize-recover=all \
		tests/engine/driver.cpp -o build/engine-driver
	build/engine-driver

docs: setup
	$(BIN)/python -m bitkd.config.reference > docs/configuration.new
	mv docs/configuration.new docs/configuration.md

test: setup .venv/compiled
	$(BIN)/pytest -n 2 --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
