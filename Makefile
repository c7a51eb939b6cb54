# One command each, on a machine with Python 3.11+, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test check clean

demo: $(VENV)/installed  ## set everything up and run the main job on the bundled demo manifest
	$(BIN)/sgi2v-batch manifest show manifests/demo/demo.parquet -o $(DEMO)-conditions.png
	$(BIN)/sgi2v-batch run manifests/demo/demo.parquet --model embedded --output $(DEMO)

test: $(VENV)/installed-dev  ## set everything up and pass lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not gpu"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .[dev]
	touch $@ $(VENV)/installed

clean:  ## remove the environment and the demo's results
	rm -rf $(VENV) $(DEMO) $(DEMO)-conditions.png
