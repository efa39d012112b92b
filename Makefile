# make compare   measure and compare the three miniature models (creates .venv on first use)
# make test      the test suite, at most ten minutes    make test-all   with the slow ones
# make test-gpu  the tests that need a CUDA device
# make wheel     build the wheel, install it in an environment of its own, compare two miniatures there
# make test-oldest  the tests of what transformers does, on the oldest version that is allowed (a venv of its own)
# make bench     the sweep benchmark                    make bench-reading  what the reading probes cost
# make bench-training  what fine-tuning adds to TRL's own steps
# make lint      ruff, mypy, import linter
# make classes  measure every class against plain hooks, for docs/architectures.md
# make docs      write again what docs/ takes from the code; make picture: the README's picture and table

PYTHON ?= python3.11
VENV ?= .venv
OUT ?= .
BIN := $(VENV)/bin
# -c pins the versions that the tests were run with
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PACKAGE := pyproject.toml constraints.txt
# An editable install that editors and type checkers understand: a tree of links, file by file. It is made again when a
# file comes or goes, which changes its folder.
EDITABLE = $(INSTALL) --no-build-isolation --config-settings editable_mode=strict -e
FOLDERS := $(shell find core plugins architectures comparisons -type d -not -name __pycache__)

.DELETE_ON_ERROR:
.PHONY: compare test test-all test-gpu test-oldest wheel bench bench-reading bench-training lint docs classes picture clean

compare: $(VENV)/.installed
	$(BIN)/xatlas compare --models lfm2-mini,qwen-mini,smollm2-mini --suite quick --out $(OUT)

# as many processes as cores, one thread each; a file's tests stay together, since they share what they measure
test: $(VENV)/.installed $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-lm-eval
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.installed $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu

test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest -m "not slow and not gpu and not real" \
		tests/core/loading tests/core/prompts tests/architectures/test_adapters.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/sweep.py

bench-reading: $(VENV)/.installed
	$(BIN)/python benchmarks/reading.py --memory standard

bench-training: $(VENV)/.installed $(VENV)/.installed-test
	$(BIN)/python benchmarks/training.py --threads 1 --clock cpu

lint: $(VENV)/.installed $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config .importlinter

# the package as it would be published, in an environment of its own, far from these folders: what it requires is linked
# there, and what it doesn't is not
wheel: $(VENV)/.installed
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-build-isolation --no-deps --wheel-dir dist .
	$(PYTHON) -m venv --without-pip $(VENV)-wheel
	$(BIN)/python .ci/link.py dist/*.whl $(VENV)-wheel
	$(BIN)/python -m pip --python $(VENV)-wheel install --disable-pip-version-check --quiet --no-index dist/*.whl
	cd dist && $(abspath $(VENV))-wheel/bin/xatlas compare --models lfm2-mini,qwen-mini --suite 'quick[2]' --out .
	rm -rf $(VENV)-wheel

docs: $(VENV)/.installed $(VENV)/.installed-test
	$(BIN)/python docs/generate.py

classes: $(VENV)/.installed $(VENV)/.installed-test
	$(BIN)/python docs/measure.py
	$(BIN)/python docs/generate.py

# the README's picture and table, from what make compare left
picture: compare
	$(BIN)/python docs/generate.py $(OUT)

$(VENV)/bin/python:
	@echo "xatlas: making $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(PACKAGE) $(FOLDERS) | $(VENV)/bin/python
	@echo "xatlas: installing what it needs into $(VENV); the README says how much that is"
	$(INSTALL) setuptools
	$(EDITABLE) '.[gguf]'
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

$(VENV)/.installed-test: $(PACKAGE) | $(VENV)/.installed
	@echo "xatlas: installing what its tests need"
	$(EDITABLE) '.[test]'
	touch $@

# what one slow test asks, and is skipped without
$(VENV)/.installed-lm-eval: $(PACKAGE) | $(VENV)/.installed-test
	$(EDITABLE) '.[test,lm-eval]'
	touch $@

# with all that the tests need
$(VENV)/.installed-dev: $(PACKAGE) | $(VENV)/.installed
	@echo "xatlas: installing linters"
	$(EDITABLE) '.[dev]'
	touch $(VENV)/.installed-test $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
