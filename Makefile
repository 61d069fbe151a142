# Every target creates .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
IS_SUPPORTED := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

.PHONY: install quickstart test check torture clean

install: $(INSTALLED)

# The Python version is checked first. pip would report it late, and leave a .venv that cannot be used.
# An existing .venv is kept, unless its Python is too old.
$(INSTALLED): pyproject.toml constraints.txt
	@$(BIN)/python $(IS_SUPPORTED) 2>/dev/null || $(PYTHON) $(IS_SUPPORTED) || { \
		echo "error: expected Python 3.11 or newer, found $$($(PYTHON) --version 2>&1): give another one," \
			"as in: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 1; }
	$(BIN)/python $(IS_SUPPORTED) 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# SEEDS=5 trains five students for each loss; students that are already trained are kept.
quickstart: $(INSTALLED)
	$(BIN)/python -m lshfm_pl.compare $(if $(SEEDS),seeds=$(SEEDS))

# Tests run in up to four processes with one thread each: more threads than cores wait for each other by computing.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Runs the fast tests. The slow ones train whole comparisons or start many processes; `make check` runs them too.
test: $(INSTALLED)
	$(PYTEST) -m "not slow"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# Takes about an hour: kills, stops and starves training runs, and writes the outcome to outputs/torture.
torture: $(INSTALLED)
	$(BIN)/python scripts/torture.py

# Keeps outputs/, pretrained/ and data/, which belong to the user.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
