# Everything from nothing: `make demo` and `make test` set up what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Processes that share the tests, file by file. Three keep two cores busy while one of them waits for Ray.
WORKERS ?= 3
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Otherwise every process would compile raykd anew, and pytest the assertions of every file.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo lint test test-all run-tests run-all-tests test-long test-cluster test-gpu reference docs clean

demo: $(VENV)/.installed ## set up, then the embedded default: a sweep over all methods, and its report
	$(BIN)/raykd sweep jobs/digits_sweep.yaml

lint: $(VENV)/.installed-dev ## set up, then ruff, mypy and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# mypy keeps one core busy for the time that the first tests wait for their processes.
test: $(VENV)/.installed-dev ## lint, and beside it every capability once, on real Ray
	$(MAKE) -j2 lint run-tests

test-all: $(VENV)/.installed-dev ## what test runs and the slow tests; README's "Tests" says what is slow, and why
	$(MAKE) -j2 lint run-all-tests

run-tests: $(VENV)/.installed-dev
	$(PYTEST)

run-all-tests: $(VENV)/.installed-dev
	$(PYTEST) -m 'not cluster and not gpu and not long'

test-long: $(VENV)/.installed-dev ## tests of minutes each: sweeps and pools of teachers, killed or broken in one more way
	$(PYTEST) -m long

test-cluster: $(VENV)/.installed-dev ## jobs, several hosts, MLflow servers; wants Debian's postgresql and iproute2, and root
	$(PYTEST) -m cluster

test-gpu: $(VENV)/.installed-dev ## the tests that want a GPU
	$(BIN)/pytest -m gpu tests/gpu

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "raykd needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The pinned versions are the ones that are tested together.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.installed $@

reference: $(VENV)/.installed ## write jobs/REFERENCE.md, every key of the YAML
	$(BIN)/python -m raykd.config.load > jobs/REFERENCE.md

docs: $(VENV)/.installed-dev reference ## build the documentation in build/docs; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file .docs/mkdocs.yml

clean: ## the virtual environment and what the runs left
	rm -rf $(VENV) runs
