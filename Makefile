# Every target works on a fresh machine with Python 3.11 and nothing installed by hand.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt
GOEMOTIONS ?= ../shared/data/goemotions

MINUTES ?= 30

.PHONY: help serve test check format bench soak reliability train clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

serve: $(VENV)/.installed  ## start the server on 127.0.0.1:8000 with the bundled model
	$(BIN)/assay serve $(ARGS)

test: check  ## lint, types, all tests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(ARGS)
	$(BIN)/python -m pytest -m "slow and not alone" -n 2 --dist loadfile $(ARGS)
	$(BIN)/python -m pytest -m alone $(ARGS)

check: $(VENV)/.installed-dev  ## lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

soak: $(VENV)/.installed-dev  ## everything that clients do, for MINUTES=30
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reliability --only soak --minutes $(MINUTES)

reliability: $(VENV)/.installed-dev  ## overload, soak, 20,000 requests; into benchmarks/results/reliability.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reliability --output benchmarks/results/reliability.json

bench: $(VENV)/.installed-dev  ## speed against the peers, into benchmarks/results; ARGS=--quick; see benchmarks/README.md
	$(BIN)/python -m benchmarks $(ARGS)

train: $(VENV)/.installed-train  ## train the bundled model again; GOEMOTIONS=folder of train.tsv, dev.tsv, test.tsv, labels.txt
	$(BIN)/python -m training.train --data $(GOEMOTIONS) --out assay/bundled/emotions

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

# torch comes first and exactly as constrained: asked for by another package, it would bring gigabytes of CUDA.
$(VENV)/.torch: constraints.txt
	$(if $(shell command -v $(PYTHON)),$(PYTHON),python3) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(wildcard assay/csrc/*)
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml $(wildcard assay/csrc/*)
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.installed-train: $(VENV)/.torch pyproject.toml $(wildcard assay/csrc/*)
	$(PIP) -e '.[train]'
	touch $@
