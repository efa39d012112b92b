# make compare   measure and compare the three miniature models (creates .venv on first use)
# make test      the test suite, at most ten minutes    make test-all   with the slow ones
# make test-gpu  the tests that need a CUDA device
# make test-oldest  the tests of what transformers does, on the oldest version that is allowed (a venv of its own)
# make bench     the sweep benchmark                    make lint       ruff, mypy, import linter
# make docs      write again what docs/ takes from the code; make picture: the README's picture and table

PYTHON ?= python3.11
VENV ?= .venv
OUT ?= .
BIN := $(VENV)/bin
# -c pins the versions that the tests were run with
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PACKAGE := pyproject.toml constraints.txt

.DELETE_ON_ERROR:
.PHONY: compare test test-all test-gpu test-oldest bench lint docs picture clean

compare: $(VENV)/.installed
	$(BIN)/xatlas compare --models lfm2-mini,qwen-mini,smollm2-mini --suite quick --out $(OUT)

# as many processes as cores, one thread each; a file's tests stay together, since they share what they measure
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist loadfile

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu

test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest -m "not slow and not gpu and not real" \
		tests/core/loading tests/core/prompts tests/architectures/test_adapters.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/sweep.py

# xatlas is assembled from four folders, which static tools can't see through an editable install:
# build/typing holds the package as they expect it, made of links.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typing && mkdir -p build/typing/xatlas
	for file in core/* plugins architectures comparisons; do \
		ln -sfn "$(CURDIR)/$$file" build/typing/xatlas/; done
	MYPYPATH=build/typing $(BIN)/mypy
	PYTHONPATH=build/typing $(BIN)/lint-imports --config .importlinter

docs: $(VENV)/.installed-test
	$(BIN)/python docs/generate.py

# the README's picture and table, from what make compare left
picture: compare
	$(BIN)/python docs/generate.py $(OUT)

$(VENV)/bin/python:
	@echo "xatlas: making $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(PACKAGE) | $(VENV)/bin/python
	@echo "xatlas: installing what it needs into $(VENV); the README says how much that is"
	$(INSTALL) setuptools
	$(INSTALL) -e '.[gguf]'
	@echo "xatlas: installed"
	touch $@

# all but transformers and what it pins in turn as in constraints.txt
$(VENV)-oldest/.installed: $(PACKAGE)
	$(PYTHON) -m venv $(VENV)-oldest
	grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints.txt > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --disable-pip-version-check setuptools \
		-c $(VENV)-oldest/constraints.txt -e '.[test]' \
		"$$(sed -nE 's/.*"(transformers)>=([^"]+)".*/\1==\2/p' pyproject.toml)"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "xatlas: installing what its tests need"
	$(INSTALL) -e '.[test]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@echo "xatlas: installing linters"
	$(INSTALL) -e '.[dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
