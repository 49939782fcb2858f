# The two commands are `make demo` and `make test`; a machine with make and Python 3.11 or newer is enough.
#
# Both put what they need into .venv, at the versions of constraints.txt, once. On Linux the plain torch wheel brings
# CUDA along (some GB): right where there is a GPU, harmless elsewhere. pip's own settings (an index, a folder of wheels)
# are respected.

VENV := .venv
PY := $(VENV)/bin/python
WORKERS ?= 2

# The first Python that is new enough and can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$python; break; fi; done)

INSTALL = $(PY) -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

# A process per core, with one thread each, so that rounding does not depend on the machine.
TESTS = OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: demo test check fuzz lint format install develop clean

demo: install
	$(VENV)/bin/labeltune demo

test: develop
	$(TESTS) -m "not slow and not fuzz"

# Kills and servers wait for other processes: what fails on a busy machine is tried once more, alone; a fault fails twice.
check: develop
	$(TESTS) -m "slow and not fuzz" || OMP_NUM_THREADS=1 $(PY) -m pytest --last-failed --last-failed-no-failures none -m "slow and not fuzz"

fuzz: develop
	$(TESTS) -m "fuzz" --hypothesis-profile fuzz

lint: develop
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: develop
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

install: $(VENV)/.installed
develop: $(VENV)/.develops

# A stamp is written when its install has succeeded, so an interrupted one is taken up again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found; name one: make PYTHON=/path/to/python" >&2; exit 1; }; \
		echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing labeltune into $(VENV); this takes some minutes, once"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.develops: $(VENV)/.installed
	@echo "Installing what the tests need into $(VENV)"
	@$(INSTALL) --editable ".[dev,hub,onnx,openvino,optuna,quantised,ray,serve,spacy]"
	@touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
