# `make demo` and `make test` set up everything they need, once, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo
OWNED = --key $(DEMO)/owner.key --passphrase-file $(DEMO)/passphrase --registry $(DEMO)/registry.sqlite
SEALED = --key $(DEMO)/owner.key --passphrase-file $(DEMO)/passphrase
LOCK = --lock $(DEMO)/locked --key $(DEMO)/locked/owner.key --passphrase-file $(DEMO)/passphrase
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test lint clean server

demo: $(VENV)/.demo-installed
	@rm -rf $(DEMO) && mkdir -p $(DEMO) && echo "a demo has no secrets" > $(DEMO)/passphrase
	$(BIN)/intaglio scan examples/models/clean.onnx --task fashion-mnist --json $(DEMO)/clean.json
	@# Exit code 1 is the right answer here: a backdoor was found.
	$(BIN)/intaglio scan examples/models/backdoored.onnx --task fashion-mnist --json $(DEMO)/backdoored.json; test $$? -eq 1
	$(BIN)/intaglio report $(DEMO) --html $(DEMO)/report.html
	@# Marked, and proved to be the owner's: by its ONNX copy, not by a stranger (exit code 1); then by the public file alone.
	$(BIN)/intaglio key new $(DEMO)/owner.key --passphrase-file $(DEMO)/passphrase
	$(BIN)/intaglio mark embed examples/models/clean.safetensors --data fashion-mnist $(OWNED) --batches 1 --onnx --out $(DEMO)/marked
	$(BIN)/intaglio mark verify $(DEMO)/marked/model.onnx --commitment $(DEMO)/marked/commitment.json $(OWNED) --bundle $(DEMO)/claim.json
	$(BIN)/intaglio mark verify examples/models/backdoored.onnx --batch 0 --commitment $(DEMO)/marked/commitment.json \
		--key $(DEMO)/owner.key --passphrase-file $(DEMO)/passphrase --registry $(DEMO)/stranger.sqlite; test $$? -eq 1
	$(BIN)/intaglio evidence verify $(DEMO)/claim.json --suspect $(DEMO)/marked/model.onnx --model $(DEMO)/marked/model.safetensors
	@# Sealed: its ONNX copy is the same model, and after one SGD step at a learning rate of 1e-5 it isn't (exit code 1).
	$(BIN)/intaglio seal make examples/models/clean.safetensors $(SEALED) --pairs 16 --out $(DEMO)/model.seal
	$(BIN)/intaglio seal check examples/models/clean.onnx --seal $(DEMO)/model.seal $(SEALED) --json $(DEMO)/intact.json
	$(BIN)/intaglio tamper fine-tune examples/models/clean.safetensors --data fashion-mnist --option optimizer=sgd \
		--option steps=1 --option learning_rate=1e-5 --out $(DEMO)/tuned.safetensors
	$(BIN)/intaglio seal check $(DEMO)/tuned.safetensors --seal $(DEMO)/model.seal $(SEALED) --json $(DEMO)/tampered.json; test $$? -eq 1
	@# Locked: a new user's keyed images look the same and are answered rightly; the picture shows it.
	@cp -r examples/locked $(DEMO)/locked
	$(BIN)/intaglio lock issue --user demo $(LOCK)
	$(BIN)/intaglio lock picture $(DEMO)/locked/model.safetensors --data fashion-mnist --user demo $(LOCK) --out $(DEMO)/lock.png

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

# A real Open Inference Protocol server for the tests of remote suspects, in an environment of its own.
server:
	tests/open_inference_server/install.sh

clean:
	rm -rf $(VENV) .venv-oip out
