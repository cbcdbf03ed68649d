# Everything a newcomer or a contributor runs. `make help` lists the targets.
#
# The targets make their own environments and remember, by stamp files inside them, what is installed:
#   .venv         the pinned versions, SQLAlchemy 2.1     (demo installs little, the other targets add to it)
#   .venv-sa20    the same with SQLAlchemy 2.0            (test-sa20)
#   .venv-es8     the oldest client of Elasticsearch      (test-elasticsearch8)
#   .venv-stdlib  a Python whose sqlite3 loads extensions (test-stdlib-sqlite)

PYTHON ?= python3
# pytest's processes: one per logical core, four at most. WORKERS=0 runs in one process, for a debugger.
WORKERS ?= logical
# Further arguments for pytest, such as PYTEST_ARGS="-x -k nearest".
PYTEST_ARGS ?=
# The suites that run again under another SQLAlchemy or another sqlite3.  What happens to tables and rows (WORK) is tested
# on one database in test-main and on the other in test-sa20, each test; what speaks to the database in SQL of its own
# (DIALECT) on sqlite3 in test-stdlib-sqlite too.
SUITES = $(wildcard tests/unit tests/conformance)
WORK = $(wildcard $(addprefix tests/,search tuning query alembic migrations embedding tracking chunking cli))
DIALECT = $(wildcard $(addprefix tests/,search tuning alembic tracking/test_capture*.py))
# Kills, faults and random programs run once.
AGAIN = -m "not long"
# The question `make demo` answers; taken as it is, since a question may contain a $.
override Q := $(value Q)
export Q

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt
SA20 = -c requirements/oldest.txt -c requirements/elasticsearch9.txt
SA21 = -c requirements/newest.txt -c requirements/elasticsearch9.txt
ES8 = -c requirements/newest.txt -c requirements/elasticsearch8.txt
PYTEST = -m pytest -n $(WORKERS) --maxprocesses 4
PINS = pyproject.toml $(wildcard requirements/*.txt)

# Some containers set it, and then each process of a run compiles everything again.
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-main test-sa20 test-elasticsearch8 test-stdlib-sqlite soak soak-elasticsearch soak-state soak-lists soak-migrations soak-search lint format bench docs wheel pins clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: .venv/.installed-demo  ## search the standard library's documentation: make demo Q="read a csv file"
	@.venv/bin/python examples/search_python_docs.py $${Q:+"$$Q"}

test: test-main test-sa20 test-elasticsearch8 test-stdlib-sqlite  ## all tests: newest with coverage, older, stdlib sqlite3

test-main: .venv/.installed-test  ## all tests on SQLAlchemy 2.1, with coverage
	.venv/bin/python $(PYTEST) --share main --cov --cov-report=term --cov-report=json $(PYTEST_ARGS)
	.venv/bin/python tools/check_coverage.py coverage.json --lines 95 --branches 90

test-sa20: .venv-sa20/.installed-test  ## all but Elasticsearch on SQLAlchemy 2.0, oldest Alembic, a driver of each kind
	.venv-sa20/bin/python $(PYTEST) $(SUITES) $(WORK) $(AGAIN) $(addprefix --backend=,asyncpg pysqlite3) --share again $(PYTEST_ARGS)

test-elasticsearch8: .venv-es8/.installed-test  ## Elasticsearch's tests with client and server of version 8.19
	.venv-es8/bin/python $(PYTEST) tests/elasticsearch $(AGAIN) $(addprefix --backend=,psycopg aiosqlite) --share again $(PYTEST_ARGS)

test-stdlib-sqlite:  ## the SQLite suite on a Python whose own sqlite3 can load extensions
	@python="$$(tools/find_stdlib_python)"; status=$$?; \
	if [ $$status -eq 0 ]; then \
	  $(MAKE) --no-print-directory .venv-stdlib/.installed-test STDLIB_PYTHON="$$python" && \
	  .venv-stdlib/bin/python $(PYTEST) $(SUITES) $(DIALECT) $(AGAIN) --backend sqlite_stdlib $(PYTEST_ARGS); \
	elif [ -z "$$CI" ]; then echo "test-stdlib-sqlite skipped."; \
	else exit $$status; fi

# One process: the numbers are of kills that happen while everything goes on.
soak: export SQLA_VECTOR_TEST_KILLS = 1000
soak: export SQLA_VECTOR_TEST_SQLITE_KILLS = 500
soak: export SQLA_VECTOR_TEST_TERMINATIONS = 300
soak: export SQLA_VECTOR_TEST_RESTARTS = 20
soak: .venv/.installed-test  ## workers and PostgreSQL killed 1,820 times: nothing lost, nothing stale
	.venv/bin/python -m pytest -s --soak tests/tracking/test_kill.py tests/docs/test_cli_guide.py $(PYTEST_ARGS)

soak-elasticsearch: export SQLA_VECTOR_TEST_ELASTICSEARCH_FAULTS = 500
soak-elasticsearch: export SQLA_VECTOR_TEST_ELASTICSEARCH_KILLS = 100
soak-elasticsearch: export SQLA_VECTOR_TEST_ELASTICSEARCH_NODE_KILLS = 5
soak-elasticsearch: export SQLA_VECTOR_TEST_ELASTICSEARCH_ROWS = 20000
soak-elasticsearch: .venv/.installed-test  ## 500 faults on the way to Elasticsearch, 100 kills of what writes to it, 5 of nodes
	.venv/bin/python -m pytest -s --soak $(addprefix tests/elasticsearch/test_,faults.py kill.py cluster.py reconcile.py servers.py) tests/benchmarks $(PYTEST_ARGS)

soak-state: export SQLA_VECTOR_RUNS = 500
soak-state: export SQLA_VECTOR_STEPS = 50
soak-state: export SQLA_VECTOR_SHRINK = 1
soak-state: .venv/.installed-test  ## 500 random programs of 50 steps over two sessions on each database, twice
	.venv/bin/python -m pytest tests/tracking/test_state_machine.py tests/chunking/test_state_machine.py $(PYTEST_ARGS)

soak-lists: export SQLA_VECTOR_RUNS = 500
soak-lists: export SQLA_VECTOR_STEPS = 50
soak-lists: export SQLA_VECTOR_TEST_TRAININGS = 200
soak-lists: .venv/.installed-test  ## indexes in lists on SQLite: random writes and trainings, 200 trainings killed
	.venv/bin/python -m pytest tests/search/test_lists_at_work.py $(PYTEST_ARGS)

soak-migrations: export SQLA_VECTOR_TEST_MATRIX = full
soak-migrations: export SQLA_VECTOR_TEST_MIGRATION_KILLS = all
soak-migrations: .venv/.installed-test  ## each of 49 models migrated into every other, and migrations killed at each statement
	.venv/bin/python $(PYTEST) --soak $(addprefix tests/,alembic/test_matrix.py alembic/test_kill.py docs/test_migrations_guide.py) $(PYTEST_ARGS)

soak-search: export SQLA_VECTOR_TEST_HYBRID_CASES = 5000
soak-search: .venv/.installed-test  ## 10,000 random hybrid searches against the reference
	.venv/bin/python -m pytest tests/search/test_hybrid.py $(PYTEST_ARGS)

lint: .venv/.installed-lint  ## ruff, mypy --strict and the import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/.installed-lint  ## let ruff sort imports and lay out the code
	.venv/bin/ruff check --select I --fix .
	.venv/bin/ruff format .

bench: .venv/.installed-bench  ## the side-by-side programs of benchmarks/
	.venv/bin/python -m benchmarks

docs: .venv/.installed-docs  ## build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

wheel: .venv/.installed-release  ## build the source archive and the wheel into dist/
	rm -rf dist
	.venv/bin/python -m build --outdir dist .

pins:  ## resolve the newest versions of everything into requirements/constraints.txt
	PYTHON="$(PYTHON)" tools/pin_requirements

clean:  ## remove what the targets made, but for the environments
	rm -rf build dist site htmlcov coverage.json .coverage .coverage.* *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environments too
	rm -rf .venv .venv-sa20 .venv-es8 .venv-stdlib

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv-sa20/bin/python:
	$(PYTHON) -m venv .venv-sa20

.venv-es8/bin/python:
	$(PYTHON) -m venv .venv-es8

.venv-stdlib/bin/python:
	$(STDLIB_PYTHON) -m venv .venv-stdlib

.venv/.installed-demo: EXTRAS = sqlite,examples
.venv/.installed-test: EXTRAS = all,test
.venv/.installed-lint: EXTRAS = all,lint
.venv/.installed-bench: EXTRAS = bench
.venv/.installed-docs: EXTRAS = docs
.venv/.installed-release: EXTRAS = release

# .venv/bin/python is an order-only prerequisite: it is a link to a file older or newer than the pins.
.venv/.installed-%: $(PINS) | .venv/bin/python
	.venv/bin/python $(PIP_INSTALL) $(SA21) -e '.[$(EXTRAS)]'
	@touch $@

.venv-sa20/.installed-test: $(PINS) | .venv-sa20/bin/python
	.venv-sa20/bin/python $(PIP_INSTALL) $(SA20) -e '.[all,test]'
	@touch $@

.venv-es8/.installed-test: $(PINS) | .venv-es8/bin/python
	.venv-es8/bin/python $(PIP_INSTALL) $(ES8) -e '.[elasticsearch,postgresql,asyncpg,sqlite,aiosqlite,http,cli,test]'
	@touch $@

.venv-stdlib/.installed-test: $(PINS) | .venv-stdlib/bin/python
	.venv-stdlib/bin/python $(PIP_INSTALL) $(SA21) -e '.[all,test]'
	@touch $@
