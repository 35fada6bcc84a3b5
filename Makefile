# make run    venv + install + train the small γ-hybrid on the embedded corpus
# make demo   venv + install + a small model, trained in minutes if there is none, on a page where
#             one sees it write; MODEL=... takes a workdir or an archive of one in its place
# make test   venv + install + the test suite
# make mutants  venv + install + wrong formulas, one at a time: does a test notice?
# make lint   venv + install + style, types and the order of imports
# make docs   venv + install + the documentation site, in build/docs
# make bench  venv + install + the benchmarks that a processor can run, about twenty minutes
# Choose an interpreter with PYTHON=python3.12, a place for the environment with VENV=folder, and
# what pytest is told with ARGS=..., such as ARGS=--cases=first (one case of each test, and few of
# the slow ones). Tests skip what needs a package or a program that is missing, and say so at the end.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
WORKDIR ?= runs/gamma_hybrid
MODEL ?= runs/demo

.PHONY: run demo test mutants bench lint docs clean

run: $(VENV)/installed
	$(BIN)/python -m hybrid_jax.main --config=configs/gamma_hybrid.py --workdir=$(WORKDIR)

demo: $(VENV)/installed $(if $(filter runs/demo,$(MODEL)),runs/demo/result.json)
	$(BIN)/python -m hybrid_jax.demo --workdir=$(MODEL)

# Autoregression first, and then blocks, which gives better texts for the same work.
runs/demo/result.json: | $(VENV)/installed
	$(BIN)/python -m hybrid_jax.main --config=ar --workdir=runs/demo-ar --config.train.steps=300
	$(BIN)/python -m hybrid_jax.main --config=adapt --init=runs/demo-ar --workdir=runs/demo \
	  --config.train.steps=400

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist=worksteal $(ARGS)

mutants: $(VENV)/installed-dev
	$(BIN)/python tests/mutants.py $(ARGS)

bench: $(VENV)/installed
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/vocab.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/step_settings.py
	$(BIN)/python benchmarks/sampling.py --repeats=3

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed-dev
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist *.egg-info
