# One command each, on a machine with Python 3.11+, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MANIFEST := manifests/demo/demo.parquet
DEMO := runs/demo

.PHONY: demo test chaos clean

demo: $(VENV)/installed  ## set everything up, run the main job on the bundled manifest, once more unguided, compare
	$(BIN)/sgi2v-batch run $(MANIFEST) --model embedded --output $(DEMO)
	$(BIN)/sgi2v-batch run $(MANIFEST) --model embedded --output $(DEMO)-unguided --unguided
	$(BIN)/sgi2v-batch sheet $(MANIFEST) $(DEMO) $(DEMO)-unguided --output $(DEMO)/sheet.png

test: $(VENV)/installed-dev  ## set everything up and pass lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder

chaos: $(VENV)/installed-dev  ## the whole chaos suite: more than 200 faults, forty minutes on two cores
	SGI2V_CHAOS=whole $(BIN)/python -m pytest tests/chaos

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .[dev]
	touch $@ $(VENV)/installed

clean:  ## remove the environment and the demo's results
	rm -rf $(VENV) $(DEMO) $(DEMO)-unguided
