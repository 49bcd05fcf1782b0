# `make demo` and `make test` need nothing but Python (3.10 or later) and make.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export PYTHONUNBUFFERED = 1

.PHONY: demo gallery docs test test-slow test-gpu gpu faults mutants lint install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[data,eval,dev]'
	touch $@

# What only some targets need; once it is there, they need no network.
$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

$(VENV)/mutants: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'mutmut>=3.8'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy taming scripts benchmarks main.py tests/models/test_first_stage.py

# Two processes of one thread each: small tests gain nothing from threads.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# With what builds the documentation site, which these tests look into.
test-slow: $(VENV)/docs
	$(BIN)/python -m pytest -m slow

test-gpu: install
	$(BIN)/python -m pytest -m gpu

# Everything that needs a CUDA device, in nine minutes on an H100: the tests marked gpu, and the
# benchmarks, whose figures go to benchmarks/results/*-cuda.json. Again: what has not passed yet.
gpu: install
	$(BIN)/python benchmarks/gpu.py

# Kill runs, damage checkpoints, fill disks, make up input; docs/reliability.md gets the tables.
faults: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/run.py --write docs/reliability.md

# Put faults into a module, one at a time, and show those that no test notices, for example
# make mutants MODULE=taming/modules/vqvae/gumbel.py TESTS='tests/modules tests/models'
mutants: $(VENV)/mutants
	$(BIN)/python -m tests.mutants $(MODULE) $(if $(TESTS),--tests $(TESTS))

# Train both stages on handwritten digits, sample, and report: two to ten minutes on two cores.
demo: install
	$(BIN)/python scripts/digits.py

# The documentation site, in site/: open site/index.html, or, to search as well, serve it by
# `python -m http.server -d site`. Warnings are errors.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Train the models of docs/gallery.md on rendered landscapes and make its pictures, in gallery/; again:
# what is missing.
gallery: install
	$(BIN)/python scripts/gallery.py

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
