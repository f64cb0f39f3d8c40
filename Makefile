# Each target sets up .venv first; UV=no forces pip where uv is installed.
PYTHON ?= python3
BIN := .venv/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/xla

.PHONY: setup demo test lint bench clean

setup: .venv/ready

.venv/ready: requirements.txt requirements-dev.txt requirements-assets.txt constraints.txt pyproject.toml
	@if command -v uv >/dev/null 2>&1 && [ "$(UV)" != no ]; then \
	  uv venv -q --clear --python $(PYTHON) .venv && \
	  uv pip install -q --python $(BIN)/python -c constraints.txt \
	    -r requirements.txt -r requirements-dev.txt && \
	  uv pip install -q --python $(BIN)/python --no-deps --require-hashes \
	    -r requirements-assets.txt && \
	  uv pip install -q --python $(BIN)/python --no-deps -e . ; \
	else \
	  $(PYTHON) -m venv .venv && \
	  $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt \
	    -r requirements.txt -r requirements-dev.txt && \
	  $(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes \
	    -r requirements-assets.txt && \
	  $(BIN)/pip install -q --disable-pip-version-check --no-deps -e . ; \
	fi
	@touch $@

test: setup
	$(BIN)/python -m pytest -m "not slow"

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf .venv .cache runs
