# `make demo` and `make test` set up everything they need, once, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.demo-installed
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/intaglio scan examples/models/clean.onnx --task fashion-mnist --json $(DEMO)/clean.json
	@# Exit code 1 is the right answer here: a backdoor was found.
	$(BIN)/intaglio scan examples/models/backdoored.onnx --task fashion-mnist --json $(DEMO)/backdoored.json; test $$? -eq 1
	$(BIN)/intaglio report $(DEMO) --html $(DEMO)/report.html

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

lint: $(VENV)/.test-installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: $(SOURCES) | $(VENV)/bin/pip
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[onnx]'
	@touch $@

$(VENV)/.test-installed: $(SOURCES) | $(VENV)/bin/pip
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) out
