# Everything below sets itself up: a virtual environment in .venv, then the package with the tools that a target needs. The second call is quick.
#   make demo    a sheet of pictures in demo/sheet.png
#   make test    all tests
#   make test-integrations   tests with the libraries of docs/integrations.md, which make test leaves out
#   make check   lint, types and tests, as continuous integration runs them
#   make docs    the documentation site in site/, built strictly; make docs-serve shows it while you write
#   make dist    the wheel and the source archive in dist/
#   make soak    a server under load for four hours, attacks, kill -9 and crashes; about six hours on two cores, for every week
#   make fuzz    thousands of altered model folders and configurations; an hour on one core
# PYTHON chooses the interpreter (3.11 or newer), PIP_FLAGS is handed to pip, for example an index with CPU builds of torch.

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGE := $(VENV)/.package

.PHONY: demo test test-integrations docs docs-serve dist fuzz soak lint format types check install browser axe speech clean

demo: $(PACKAGE)
	OMP_NUM_THREADS=1 $(BIN)/unmask demo --seed 7 --out demo

# One thread a process: pytest already keeps every core busy. Files run in the order of tests/conftest.py, slow ones first. GPU tests are asked for by name: pytest -m gpu.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --timeout 600 -m "not gpu" $(ARGS)

# Packages that make test does without. Their lists require no other torch than the one that is there; that of lmms-eval is not asked.
CLIENTS := openai@6 @langchain/openai@1 ai@6 @ai-sdk/openai-compatible@2 @openrouter/ai-sdk-provider@2
test-integrations: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[test,integrations]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps 'lmms-eval>=0.7,<0.8'
	@command -v npm >/dev/null || echo "no npm: the JavaScript clients are left out" >&2
	@! command -v npm >/dev/null || npm install --prefix $(VENV)/node --silent --no-audit --no-fund $(CLIENTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integrations --timeout 600 $(ARGS)

docs docs-serve: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[test,docs]'
	PYTHONPATH=. $(BIN)/mkdocs $(if $(filter docs,$@),build,serve) --strict

# dist/: the wheel and the source archive, as they are released.
dist: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) build
	$(BIN)/python -m build --outdir dist .

fuzz: install
	OMP_NUM_THREADS=1 UNMASK_FUZZ_EXAMPLES=20000 $(BIN)/python -m pytest tests/checkpoints/test_altered_folders.py $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python bench/altered_folders.py

# MINUTES of the soak test; the figures go to bench/history.jsonl, from which python -m tests.serving.test_docs writes the table of docs/operate.md.
MINUTES ?= 240
soak: install
	$(BIN)/python bench/serving_soak.py --minutes $(MINUTES) --threads 1 --record
	$(BIN)/python bench/serving_load.py --minutes 5 --threads 1 --record
	$(BIN)/python bench/serving_company.py --threads 1 --record
	$(BIN)/python bench/serving_attacks.py --threads 1 --record
	$(BIN)/python bench/serving_faults.py --threads 1 --record
	$(BIN)/python bench/serving_fuzz.py --requests 10000 --threads 1 --record
	$(BIN)/python bench/serving_fairness.py --threads 1 --record
	$(BIN)/python bench/killed.py --threads 1 --record

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: install
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

check: lint types test

# The page is tested in a browser: the one that UNMASK_CHROMIUM names, or a chromium. Where there is none, those tests are skipped.
browser: axe
	@if [ -n "$$UNMASK_CHROMIUM" ]; then \
	  command -v "$$UNMASK_CHROMIUM" >/dev/null && exit 0; \
	  echo "UNMASK_CHROMIUM names $$UNMASK_CHROMIUM, which is no program: name a browser, or unset it" >&2; exit 1; fi; \
	for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -q && apt-get install -q -y --no-install-recommends chromium && exit 0; \
	echo "no browser for the tests of the page: install the system package chromium, or name one in UNMASK_CHROMIUM" >&2; exit 1

# The rules of accessibility that the page is held against, where there is npm; without them that test is skipped.
axe:
	@if [ ! -e .axe/node_modules/axe-core ]; then command -v npm >/dev/null && npm install --silent --no-fund --no-audit --prefix .axe axe-core@4 || \
	  echo "no npm: the accessibility of the page is not tested" >&2; fi

# Voices for the demonstration of DIFFA, whose rehearsal is skipped without them.
speech:
	@command -v espeak-ng >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -q && apt-get install -q -y --no-install-recommends espeak-ng; } || \
	  echo "no espeak-ng: the demonstration of DIFFA is not rehearsed" >&2

install: $(STAMP)

# Python compiles the packages on all cores, where pip would on one; some hold files that are no Python of this version.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib unmask

$(STAMP): pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) $(PIP_FLAGS) -e '.[test]'
	$(COMPILE) || true
	$(BIN)/python -m tests.packed
	@touch $@ $(PACKAGE)

# The package alone, which is what a demo needs.
$(PACKAGE): pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) $(PIP_FLAGS) -e .
	$(COMPILE) || true
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unmask needs Python 3.11 or newer: make PYTHON=python3.11")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && apt-get install -q -y python3-venv; } || { \
	  echo "Python cannot make virtual environments here: install the system package python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .axe demo dist site .cache .pytest_cache .ruff_cache
