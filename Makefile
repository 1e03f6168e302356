# Everything a person or CI runs. Each target sets the environment up first; the second time that costs nothing.
PYTHON ?= python3
SLIDES ?=
OUT ?= demo-out
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-slow lint bench lock clean

setup: $(READY)

$(READY): requirements.lock requirements-setup.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "HistoSeek needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-setup.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)
	$(BIN)/histoseek demo $(if $(SLIDES),--slides "$(SLIDES)") --out "$(OUT)"

test: $(READY)
	$(BIN)/pytest -m "not slow and not browser and not gpu"

test-slow: $(READY)
	$(BIN)/pytest -m "slow or browser or gpu" --timeout 1800

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# Hashes of every file on every platform, and no address of any index.
lock: $(READY)
	echo uv | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate - -o requirements-setup.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
