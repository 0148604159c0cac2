# A thin front. `make help` lists the commands; everything sets itself up first.
PROFILE ?= smoke
CONDA := $(if $(filter compression-companion,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX))
ENV := $(or $(CONDA),.venv)
BASE := $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1 && echo $$p && break; done)
HASH := $(shell cat requirements.txt pyproject.toml | $(BASE) -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])')
STAMP := $(ENV)/.companion-$(HASH)
SITE := $(ENV)/.site-$(shell cat docs/requirements.txt | $(BASE) -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])')
PYTHON := $(ENV)/bin/python
# The stamp carries a hash, not a time: a second call repeats no set-up unless the pins have changed.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export PROFILE
export PYTHONUTF8 := 1
export PATH := $(abspath $(ENV))/bin:$(PATH)

.PHONY: figures status test lint notebooks readme compare lab site bench clean help
.DEFAULT_GOAL := help

figures: $(STAMP)  ## run every notebook of PROFILE (smoke, laptop, …): rows, claims, figures; FIGURES=pdf adds PDFs
	@$(PYTHON) -m lib.run figures "$$PROFILE" $(if $(SHARDS),shards=$(SHARDS)) $(SNAKEMAKE)

status: $(STAMP)  ## the progress of PROFILE: trials done, failed and left, time spent and still needed
	@$(PYTHON) -m lib.run status "$$PROFILE"

test: $(STAMP)  ## the tests and, beside them, the committed notebooks with an empty store; NIGHTLY=1 adds the long ones
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && COMPANION_QUIET=lines COMPANION_WORKERS=1 \
		RUNS_DIR="$${RUNS_DIR:-$$scratch/runs}" FIGURES_DIR="$${FIGURES_DIR:-$$scratch/figures}" \
		$(PYTHON) -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		--nbval-lax --nbval-current-env notebooks tests

lint: $(STAMP)  ## ruff on code and notebooks
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

notebooks: $(STAMP)  ## refresh the committed outputs in notebooks/ (smoke scale)
	@$(PYTHON) -m lib.run refresh

readme: $(STAMP)  ## write runs/<profile>/README.md, the tables of claims and costs, from the published results
	@$(PYTHON) -m lib.summary readme

compare: $(STAMP)  ## which verdicts and statistics differ between two runs: A=runs/laptop B=...
	@$(PYTHON) -m lib.summary compare "$(A)" "$(B)"

lab: $(STAMP)  ## open JupyterLab; its options: LAB="--port 9000 --no-browser"
	@$(PYTHON) -m lib.run lab $(LAB)

site: $(STAMP) $(SITE)  ## build the site into docs/_build/html
	@$(PYTHON) docs/build.py

bench: $(STAMP)  ## measure every claim about speed and write docs/speed.md (a quarter of an hour)
	@$(PYTHON) -m tests.bench

clean:  ## delete smoke and local results, trial stores and build files; never committed files
	@test ! -e .build/lock || $(BASE) -c 'import fcntl; fcntl.flock(open(".build/lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)' \
		2>/dev/null || { echo "A batch is running here: wait for it, or stop it, and then make clean."; exit 1; }
	@rm -rf .build docs/_build figures/smoke figures/local runs/local runs/*/trials .pytest_cache .ruff_cache
	@find runs/smoke -type f ! -name '*.yaml' -delete

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

$(STAMP):
	@test -n "$(BASE)" || { echo "Python 3.11 or 3.12 is needed and was not found: install one and run make again."; exit 1; }
	@test -n "$(CONDA)" || test -x $(PYTHON) || $(BASE) -m venv $(ENV)
	@echo "Setting up $(ENV): about 2 minutes and 6 GB, once."
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@rm -f $(ENV)/.companion-* && touch $@

$(SITE): | $(STAMP)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@rm -f $(ENV)/.site-* && touch $@
