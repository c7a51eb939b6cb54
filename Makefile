# Needs Python 3.11 to 3.13, git and make. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MANIFEST := manifests/demo/demo.parquet
DEMO := runs/demo
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= sgi2v-batch:$(VERSION)
ENGINE ?= $(firstword $(foreach engine,docker podman nerdctl,$(if $(shell command -v $(engine)),$(engine))))
EXTRAS ?=

.DEFAULT_GOAL := help
.PHONY: help demo check test whole docs chaos image lint clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

demo: $(VENV)/installed  ## install, run the bundled manifest with and without guidance, draw the contact sheet, write the report
	$(BIN)/sgi2v-batch run $(MANIFEST) --model embedded --preset scene --output $(DEMO)
	$(BIN)/sgi2v-batch run $(MANIFEST) --model embedded --output $(DEMO)-unguided --unguided
	$(BIN)/sgi2v-batch sheet $(MANIFEST) $(DEMO)-unguided $(DEMO) --output $(DEMO)/sheet.png
	$(BIN)/sgi2v-batch sheet $(MANIFEST) $(DEMO)-unguided $(DEMO) --output $(DEMO)/sheet.webp
	$(BIN)/sgi2v-batch report $(DEMO) $(DEMO)-unguided

check: lint  ## lint, types, and the tests that need less than a minute
	$(BIN)/python -m pytest -m "not slow and not gpu and not whole" -n 2 -q

test: lint  ## everything that must pass before a change lands: lint, types, every test
	$(BIN)/python -m pytest -m "not gpu and not whole" -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

whole: lint  ## make test and the tests of what rarely changes: full size, compilers, trainings
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder

docs: $(VENV)/installed-dev  ## build the pages into site/
	$(BIN)/mkdocs build --strict

chaos: $(VENV)/installed-dev  ## the whole chaos suite: more than 200 faults, forty minutes on two cores
	SGI2V_CHAOS=whole $(BIN)/python -m pytest tests/chaos

image:  ## build the image for the nodes of a cluster; IMAGE=registry/name:tag names it, EXTRAS=[gcs,azure] adds clouds
	@test -n "$(ENGINE)" || { echo "make image needs docker, podman or nerdctl, and finds none of them" >&2; exit 1; }
	@$(ENGINE) info > /dev/null 2>&1 || { echo "make image: $(ENGINE) has no running engine; start it first" >&2; exit 1; }
	$(ENGINE) build --file jobs/image/Dockerfile --build-arg EXTRAS="$(EXTRAS)" --tag $(IMAGE) .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .[report]
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .[dev]
	touch $@ $(VENV)/installed

clean:  ## remove the environment and the demo's results
	rm -rf $(VENV) $(DEMO) $(DEMO)-unguided $(DEMO)-report
