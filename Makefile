# Two commands: `make demo` trains, `make test` checks. Both build .venv where it is missing.
PYTHON ?= python3
VENV := .venv
INTEGRATIONS := .venv-integrations
RELEASE := .venv-release
BIN := $(VENV)/bin
# Only errors are said: pip warns of many things that are as they should be here.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
	$(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-all test-integrations soak lint format bench docs release clean

demo: $(VENV)/.train
	$(BIN)/orthon compare --out runs/demo

test: lint
	$(BIN)/pytest

test-all: lint
	$(BIN)/pytest -m ''

test-integrations: $(INTEGRATIONS)/.ready
	$(INTEGRATIONS)/bin/python -m pytest tests/integrations

STEPS ?= 2000
soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak --steps $(STEPS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.train
	$(BIN)/python -m benchmarks.cpu

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

# Wheel and source archive into dist/, and a trial of the wheel in an environment that holds nothing else.
release: $(RELEASE)/.ready
	rm -rf dist
	$(RELEASE)/bin/python -m build --no-isolation
	$(RELEASE)/bin/python -m scripts.smoke dist/orthon-*.whl

clean:
	rm -rf $(VENV) $(INTEGRATIONS) $(RELEASE) build dist runs

# torch comes first and pinned: resolved on its own, pip may take another build with gigabytes of extras.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Orthon needs Python 3.11 or later; call make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch and what Orthon needs into $(VENV) (once, about a minute) ..."
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	@$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	@echo "Installing the development tools ..."
	@$(PIP) --editable '.[train,dev]'
	@touch $@

# Other people's packages, with pins of their own: they need not fit the ones above.
$(INTEGRATIONS)/.ready: constraints-integrations.txt pyproject.toml
	@test -x $(INTEGRATIONS)/bin/python || $(PYTHON) -m venv $(INTEGRATIONS)
	@echo "Installing the packages that Orthon is tried with into $(INTEGRATIONS) (once, about two minutes) ..."
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(INTEGRATIONS)/bin/python -m pip install --quiet $(TORCH)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(INTEGRATIONS)/bin/python -m pip install --quiet \
		--constraint constraints-integrations.txt --editable '.[integrations]'
	@touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	@$(PIP) --editable '.[docs]'
	@touch $@

$(RELEASE)/.ready: constraints.txt
	@test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(RELEASE)/bin/python -m pip install --quiet \
		--constraint constraints.txt build hatchling
	@touch $@
