# Every command a person or CI runs. `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# The tests start hundreds of processes, and a start that compiles everything anew takes three times as long.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test faults check bench docs fmt lock clean

help:          ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(VENV)/.ready  ## Virtual environment from the lock files, and the web page's one npm package

$(VENV)/.ready: requirements-setup.lock requirements-dev.lock pyproject.toml clients/web/package-lock.json
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --requirement requirements-setup.lock
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --require-hashes --requirement requirements-dev.lock
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	PATH="$$PATH:$(abspath $(BIN))" npm ci --silent --no-audit --no-fund --prefix clients/web
	touch $@

demo: setup    ## The whole path on embedded defaults; ARGS="--seconds 40 --headless" ends by itself
	$(BIN)/python -m clients.demo $(ARGS)

test: setup    ## Every test, against a real Kafka, Valkey, SMTP server and browser
	$(BIN)/python scripts/prepare_tests.py
	$(BIN)/pytest -n 2 $(ARGS)

faults: setup  ## Every fault recipe in its long form, about half an hour; NEARCAST_TEST_SEED=1,2,3 for more seeds
	$(BIN)/python scripts/prepare_tests.py
	$(BIN)/pytest tests/faults -m "long or not long" -o log_cli=true -o log_cli_level=INFO \
		-o log_cli_format="%(asctime)s %(name)s: %(message)s" $(ARGS)

check: setup   ## Lint, types, import contracts; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup   ## All benchmarks, one after another
	$(BIN)/python scripts/prepare_tests.py
	$(BIN)/python -m bench

docs: setup    ## Reference pages, made from the code
	$(BIN)/nearcast reference settings > docs/reference/settings.md
	$(BIN)/nearcast reference metrics > docs/reference/metrics.md
	$(BIN)/nearcast reference promotions > docs/reference/promotions.schema.json
	$(BIN)/nearcast reference world > docs/reference/world.schema.json

fmt: setup     ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:          ## Choose versions anew and write the lock files
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --all-extras -c requirements.lock pyproject.toml -o requirements-dev.lock
	printf 'setuptools\nuv\n' | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate -c requirements-dev.lock - -o requirements-setup.lock

clean:         ## Remove everything that set-up and tests made
	rm -rf $(VENV) .cache build *.egg-info clients/web/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
