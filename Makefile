# One word for each thing to do here; `make help` lists them.
#
#   make test PYTHON=python3.12        another Python for the virtual environment
#   make demo VENV=/tmp/venv           another place for it
#   make test JOBS=4                   as many test files at a time (each may take two CPUs and 2 GB)
#   make test-long FUZZ_SECONDS=60     less than an hour of hostile files
#   make demo PIP_ARGS='--index-url …' anything else that pip should know, such as where a CPU build of torch is

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
FUZZ_SECONDS ?= 3600
JOBS ?= 2

RUN = $(VENV)/bin/
STAMP = $(VENV)/.installed
PIP = $(RUN)python -m pip --disable-pip-version-check install --progress-bar off $(PIP_ARGS)
# A dot per package, so that one sees that pip is working; all that it said if it failed.
DOTS = awk '{said = said $$0 "\n"} /^Collecting /{printf "."; fflush()} /^pip failed$$/{bad = 1} \
  /^Installing collected/{printf " unpacking"; fflush()} END {print ""; if (bad) printf "%s", said; exit bad}'
TORCH = $(shell grep '^torch==' constraints.txt)
NOTEBOOKS = $(wildcard notebooks/*.ipynb notebooks/app/*.ipynb)
WIZARD = notebooks/5-wizard.ipynb
APP = notebooks/app/dcptools.ipynb

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long check format bench lab app docs docs-pages docs-speed docs-shots clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## the virtual environment

# The stamp lies in the environment, so that both go together. torch comes first and alone: with the pinned version in
# place no later step is tempted to fetch another build of it.
$(STAMP): pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing $(TORCH) into $(VENV) (the first time this takes minutes)"
	@{ $(PIP) '$(TORCH)' 2>&1 || echo 'pip failed'; } | $(DOTS)
	@echo "Installing dcptools with its notebook, test and docs extras"
	@{ $(PIP) -c constraints.txt -e '.[notebook,test,docs]' 2>&1 || echo 'pip failed'; } | $(DOTS)
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || { \
	  echo "dcptools needs Python 3.11 to 3.14, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)" >&2; \
	  echo "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

demo: $(STAMP) ## a small checkpoint, and the whole line from it to safetensors
	$(RUN)python -m dcptools.demo build/demo --walk

# In `test` and `check` everything runs, and the target fails if one part did. -rs prints why tests were skipped.
test: $(STAMP) ## all tests but the long ones, and every notebook
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  echo "No Chromium here: the browser tests (marker e2e) are skipped. On Debian: apt-get install chromium"
	@failed=0; \
	echo "pytest"; $(RUN)python -m pytest -q -rs -n $(JOBS) --dist loadfile --no-loadscope-reorder || failed=1; \
	if [ -n "$(NOTEBOOKS)" ]; then \
	  echo "pytest --nbmake notebooks"; $(RUN)python -m pytest -q -rs --nbmake --nbmake-timeout=600 notebooks || failed=1; \
	else echo "There are no notebooks to run."; fi; \
	exit $$failed

test-long: $(STAMP) ## the tests that take minutes or gigabytes
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(RUN)python -m pytest -q -rs -o faulthandler_timeout=0 -m long

check: $(STAMP) ## lint, format, types, direction of imports, notebooks without output
	@failed=0; \
	for tool in 'ruff check .' 'ruff format --check .' mypy lint-imports; do \
	  echo "$$tool"; $(RUN)$$tool || failed=1; \
	done; \
	if [ -n "$(NOTEBOOKS)" ]; then \
	  echo "nbstripout --verify notebooks"; $(RUN)nbstripout --verify --keep-id $(NOTEBOOKS) || failed=1; fi; \
	exit $$failed

format: $(STAMP) ## let ruff and nbstripout put right what they can
	$(RUN)ruff check --fix .
	$(RUN)ruff format .
	@if [ -n "$(NOTEBOOKS)" ]; then $(RUN)nbstripout --keep-id $(NOTEBOOKS); fi

bench: $(STAMP) ## how fast, and in how much memory
	$(RUN)python -m tests.bench

# JupyterLab refuses to run as root unless told that it is meant, as in a container.
lab: $(STAMP) ## JupyterLab with the wizard
	$(RUN)jupyter lab $$([ "$$(id -u)" -ne 0 ] || echo --allow-root) $(if $(wildcard $(WIZARD)),$(WIZARD),.)

app: $(STAMP) ## the wizard as a page of its own
	$(RUN)voila $(APP) --Voila.ip=127.0.0.1 --token

# Warnings count (--strict), which they would not with --quiet: that hides them from mkdocs too.
docs: $(STAMP) ## the documentation in build/docs
	NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict
	@echo "build/docs/index.html; with a search: $(RUN)python -m http.server --directory build/docs"

docs-pages: $(STAMP) ## write the generated pages of docs again, after a change of code or notebooks
	for page in cli api notebooks; do $(RUN)python docs/scripts/$$page.py || exit 1; done

docs-speed: $(STAMP) ## measure all (25 minutes, best on a quiet machine), and write the page about it again
	@mkdir -p build
	$(RUN)python -m tests.bench --rounds 3 --json build/bench.json
	$(RUN)python docs/scripts/speed.py build/bench.json

docs-shots: $(STAMP) ## take the pictures of the wizard again; needs Chromium
	$(RUN)python docs/scripts/screenshots.py

clean: ## remove what was built, but not the virtual environment
	rm -rf build dist dcptools.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
