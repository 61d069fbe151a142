# Every target makes .venv and installs what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install quickstart test check torture clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/python -m lshfm_pl.compare

# Without the slow tests, which train whole comparisons or start many processes; `make check` runs them too.
test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# Long: kills, stops and starves training runs, and writes what came of it to outputs/torture.
torture: $(INSTALLED)
	$(BIN)/python scripts/torture.py

# Leaves outputs/, pretrained/ and data/ alone: they are the user's.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
