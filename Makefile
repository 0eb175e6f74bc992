# Two commands on a fresh machine with Python >= 3.11: make run, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check serve clean

run: .venv/ready data/sample  ## the sample corpus, embedded through the Prefect flow, and three searches
	$(BIN)/latent run --flow
	@for query in "how do I parse a date" "run a command and read its output" "what happens when an exception is raised"; do \
	  printf '\n> latent search "%s" -k 3\n' "$$query"; $(BIN)/latent search "$$query" -k 3 || exit 1; done
	@printf '\nnext:\n  $(BIN)/latent status\n  $(BIN)/latent search "your question" --where "kind = '"'function'"'"\n  edit a file in data/sample, then make run: only its changed passages are encoded\n  $(BIN)/latent init PATH --config mine.toml    your own documents\n'

test: .venv/ready  ## the whole suite, real engines
	$(BIN)/pytest

check: .venv/ready  ## lint, format, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

data/sample: | .venv/ready
	$(BIN)/latent init --sample

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

clean:  ## the environment and all data
	rm -rf .venv data
