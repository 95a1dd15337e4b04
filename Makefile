# make demo      set up, train five mixers on the embedded data set, print the leaderboard
# make test      set up, run the tests: the whole behaviour, in minutes
# make quick     those that start no process, train nothing and fill no store
# make test-all  those that 'make test' leaves out: SLURM, PostgreSQL, kill loops, long matrices
# make check     formatting, lint and types

PYTHON ?= python3
BIN := .venv/bin
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo quick test test-all check lock clean

demo: .venv/.installed
	@$(BIN)/mixerbench suite run suite=demo
	@echo "As pages, in your browser: $(BIN)/mixerbench leaderboard open protocol=digits"

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

quick: .venv/.installed
	$(PYTEST) -m "not slow and not heavy and not everything"

test: .venv/.installed
	$(PYTEST) -m "not everything"

test-all: .venv/.installed
	$(PYTEST) -m everything

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mixerbench needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "this Python cannot make virtual environments: apt-get install python3-venv"; exit 1; }
	@echo "Setting up, once. 1 of 3: a virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet uv
	@echo "2 of 3: PyTorch, MLflow and what they need: a download of some gigabytes, a minute or two"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	@echo "3 of 3: mixerbench itself"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

# Pins every dependency for all platforms; names no package index.
lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--quiet -o requirements.lock

clean:
	rm -rf .venv runs mlflow.db mlflow.db.lock mlartifacts
