# Two commands on a fresh machine with Python >= 3.11: make run, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run int8 space infra test check docs deploy faults cluster bench pins audit clean

run: .venv/ready data/sample  ## the sample corpus, embedded through the Prefect flow, and three searches
	$(BIN)/latent run --flow
	@for query in "how do I parse a date" "run a command and read its output" "what happens when an exception is raised"; do \
	  printf '\n> latent search "%s" -k 3\n' "$$query"; $(BIN)/latent search "$$query" -k 3 || exit 1; done
	@printf '\nnext:\n  $(BIN)/latent status\n  $(BIN)/latent search "your question" --where "kind = '"'function'"'"\n  edit a file in data/sample, then make run: only its changed passages are encoded\n  $(BIN)/latent init PATH --config mine.toml    your own documents\n'

int8: .venv/ready-int8  ## what [model] precision = "int8" needs

space: .venv/ready-space  ## what `latent map` and clusters by density need

infra: .venv/ready-infra  ## what the tests of infra/ try its files with: Linux only, they skip without

test: .venv/ready-dev  ## the whole suite, real engines, two files at a time
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: .venv/ready-dev build/types  ## lint, format, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: build/types
build/types:  ## the folders under the names that they are imported by, for type checkers and editors
	rm -rf $@ && mkdir -p $@/latent
	for each in pipeline/*; do ln -s ../../../$$each $@/latent; done
	ln -s ../../../flows $@/latent

docs: .venv-docs/ready  ## the documentation, into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict  # not --quiet: strict counts only warnings that are logged

POOL ?= latent
CONFIG ?= config.toml
deploy: .venv/ready  ## the deployments of CONFIG, on the configured Prefect server, for the workers of POOL, which find it at SEEN_AS; writes prefect.yaml
	$(BIN)/python -m latent.flows.deployments --config $(CONFIG) --pool $(POOL) $(if $(SEEN_AS),--seen-as $(SEEN_AS)) $(ARGS)
	$(BIN)/prefect work-pool inspect $(POOL) > /dev/null 2>&1 || $(BIN)/prefect work-pool create --type process $(POOL)
	PWD="$(CURDIR)" $(BIN)/prefect --no-prompt deploy --all

faults: .venv/ready-dev  ## the promise under some hundreds of kills and meetings of two writers, with a table
	$(BIN)/python tests/faults/harness.py $(ARGS)

cluster: .venv/ready-dev  ## runs on a Ray cluster of many machines while nodes die, are cut off and join, with a table; root on Linux, half an hour
	$(BIN)/python tests/cluster/many_machines.py $(ARGS)

bench: .venv/ready-bench  ## our encoder and our whole job beside what people would otherwise write, with tables and a chart; an hour
	$(BIN)/python tests/bench/speed.py --json data/encoders.json $(ARGS)
	$(BIN)/python tests/bench/job.py --json data/jobs.json $(ARGS)
	$(BIN)/python tests/bench/chart.py data/encoders.json data/jobs.json tests/bench/speed

data/sample: | .venv/ready
	$(BIN)/latent init --sample

# Hashes for every file of each version, so for any platform; `--no-deps`, so nothing comes in beside the list.
.venv/ready: requirements.txt requirements-torch.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements.txt
	$(BIN)/pip install --quiet --requirement requirements-torch.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/ready-int8: .venv/ready requirements-int8.txt
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements-int8.txt
	touch $@

.venv/ready-space: .venv/ready requirements-space.txt
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements-space.txt
	touch $@

.venv/ready-bench: .venv/ready-int8 .venv/ready-space requirements-bench.txt
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements-bench.txt
	touch $@

.venv/ready-dev: .venv/ready-int8 .venv/ready-space requirements-dev.txt
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements-dev.txt
	touch $@

.venv/ready-infra: .venv/ready-dev requirements-infra.txt
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements-infra.txt
	touch $@

# An environment of its own: its click and jinja2 need not be ours.
.venv-docs/ready: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --require-hashes --no-deps --requirement requirements-docs.txt
	touch $@

PIN := UV_CUSTOM_COMPILE_COMMAND="make pins" uv pip compile --quiet --universal --generate-hashes --python-version 3.11
pins:  ## the lists of requirements from pyproject.toml: keeps versions that still fit; needs uv
	$(PIN) --extra model --no-emit-package torch --output-file requirements.txt pyproject.toml
	for extra in int8 space; do \
	  $(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$$extra'], sep='\n')" \
	  | $(PIN) --constraint requirements.txt --constraint requirements-torch.txt --no-emit-package torch --output-file requirements-$$extra.txt - || exit 1; done
	$(PIN) --group dev $(foreach list,requirements requirements-int8 requirements-space,--constraint $(list).txt) --output-file requirements-dev.txt
	$(PIN) --group bench $(foreach list,requirements requirements-int8 requirements-space,--constraint $(list).txt) --output-file requirements-bench.txt
	$(PIN) --group infra --constraint requirements-dev.txt --output-file requirements-infra.txt
	$(PIN) --group docs --output-file requirements-docs.txt
	echo 'ray[default]' | $(PIN) --constraint requirements.txt --output-file infra/requirements-ray.txt -

audit:  ## known vulnerabilities of what is pinned; needs pip-audit and the network
	pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt --requirement requirements-int8.txt --requirement requirements-space.txt --requirement requirements-dev.txt --requirement requirements-infra.txt --requirement requirements-docs.txt --requirement infra/requirements-ray.txt
	pip-audit --strict --disable-pip --no-deps --requirement requirements-torch.txt

clean:  ## the environment and all data
	rm -rf .venv .venv-docs data
