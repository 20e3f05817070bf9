# Every target sets up what it needs. PYTHON=python3.12 picks an interpreter; PIP_ARGS reaches pip (for instance an index
# that carries the CPU build of torch).
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
MODES ?= worst uniform

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage device-errors lint gpu format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: $(VENV)/.complete  ## create .venv with everything that demo, test and lint need

$(VENV)/.complete: constraints.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
		|| { echo "fastvtp needs Python 3.10 or newer; '$(PYTHON)' is not: try make PYTHON=python3.12"; exit 1; }
	@echo "==> creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		echo "    this Python has no venv module: installing Debian's python3-venv"; \
		SUDO=; [ "$$(id -u)" = 0 ] || SUDO=sudo; \
		$$SUDO apt-get -qq update && $$SUDO apt-get -qq install -y python3-venv >/dev/null; \
		rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "==> installing fastvtp and its dependencies (torch and DALI are large: one to several minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[gpu,dali,dev]"
	@touch $@

demo: setup  ## captioned videos -> pretrained SimVTP -> retrieval scores and pictures in runs/demo
	@echo "==> running the demo: results land in runs/demo"
	@$(BIN)/fastvtp demo

test: setup  ## the whole test suite
	@echo "==> running the tests"
	@$(BIN)/python -m pytest -n 2 --dist loadfile

coverage: setup  ## the test suite with line coverage
	@echo "==> running the tests with coverage"
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

device-errors: setup  ## the kernels' tests with the errors of a GPU's units in Triton's interpreter: MODES="worst uniform"
	@for mode in $(MODES); do \
		echo "==> running the kernels' tests with errors: $$mode"; \
		$(BIN)/python -m pytest -n 2 --dist loadfile -q -p tests.kernels.device_errors --device-errors $$mode \
			tests/kernels --ignore-glob='*/test_compile_*' --ignore=tests/kernels/test_edges.py || exit 1; \
	done

lint: setup  ## ruff, formatting, types
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "==> pyright"
	@$(BIN)/pyright --pythonpath $(BIN)/python

gpu:  ## kernel tests and all benchmarks on this machine's GPU, within nine minutes: make gpu OUT=folder
	@test -n "$(OUT)" || { echo "make gpu OUT=folder: where shall the results go?"; exit 1; }
	@PYTHONPATH=.:kernels$${PYTHONPATH:+:$$PYTHONPATH} $$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) -m benchmarks.device.gpu --out $(OUT)

format: setup  ## rewrite the sources in the house format
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove the environment, the demo's run and caches
	rm -rf $(VENV) runs/demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
