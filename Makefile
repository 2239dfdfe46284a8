PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo

.PHONY: help demo test torture docs links check install clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/installed  ## train on embedded pictures, explain, write demo/report.html (minutes; no download of data)
	$(BIN)/lficam demo --out $(OUT)

test: $(VENV)/installed-dev  ## the test suite, on two cores under five minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal -q tests

torture: $(VENV)/installed-dev  ## the reliability tests at their full counts, with a table of what they measured
	$(BIN)/python -m pytest -q tests/reliability tests/test_export.py tests/test_batch.py tests/serving --torture

docs: $(VENV)/installed-docs  ## the documentation site, docs/_build/index.html; runs its two notebooks
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build

links: $(VENV)/installed-docs  ## check that the links of the documentation lead somewhere; needs the network
	$(BIN)/sphinx-build -q -b linkcheck -D nb_execution_mode=off docs docs/_build/links

check: $(VENV)/installed-dev  ## format, lint, types, import direction, doctests, tests, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q --doctest-modules src
	$(MAKE) test
	$(MAKE) docs

install: $(VENV)/installed  ## lficam in a virtual environment of its own

# torch and torchvision first and alone: the two must come from one place.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch torchvision
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[scenes]'
	touch $@

$(VENV)/installed-dev: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

clean:  ## the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
