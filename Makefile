# `make demo` and `make test` are all a newcomer needs: each sets up its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The oldest transformers that is supported, laid over the environment: torch and the rest are shared.
OLD := $(VENV)-4.57

export TOKENIZERS_PARALLELISM ?= false
# Two processes of pytest, a file of tests in one of them.
TWO := --numprocesses 2 --dist loadfile

# The built wheel in an environment of its own; and one with the lowest versions that pyproject.toml allows.
DIST := $(VENV)-dist
LOWEST := $(VENV)-lowest

.PHONY: demo test fast old dist lowest lint docs links format clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	@sh supply/environment.sh $(VENV) $(PYTHON)

demo: $(READY)  ## the whole method on the packaged model and corpus, against the dense model
	$(BIN)/earlybert finetune --config configs/demo.yaml --compare

test: $(READY)  ## every test, the slow ones too, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO)

fast: $(READY)  ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m 'not slow'

old: $(OLD)/.ready  ## families, tickets and save/load on transformers 4.57
	OMP_NUM_THREADS=1 PYTHONPATH=$(OLD):$$PYTHONPATH $(BIN)/python -m pytest $(TWO) -m 'not slow' tests/test_families*.py tests/anatomy tests/ticket tests/test_cost.py

$(OLD)/.ready: $(READY)
	$(BIN)/python -m pip install --quiet --progress-bar off --upgrade --no-deps --target $(OLD) 'transformers==4.57.*' \
		'huggingface-hub<1' 'tokenizers<0.23' requests urllib3 charset-normalizer certifi idna
	@touch $@

dist:  ## wheel and sdist into dist/, the wheel installed in an empty environment and tried there
	rm -rf dist $(DIST)
	$(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet --progress-bar off build
	$(DIST)/bin/python -m build
	$(PYTHON) -m venv --clear $(DIST)
	$(DIST)/bin/python -m pip install --quiet --progress-bar off -c constraints.txt dist/*.whl
	$(DIST)/bin/python -I supply/try_install.py

lowest: $(LOWEST)/.ready  ## families, tickets and the callback on the lower bounds, with the torch of constraints.txt
	PYTHONPATH=src:$$PYTHONPATH $(LOWEST)/bin/python -m pytest $(TWO) -m 'not slow' tests/test_families*.py tests/anatomy tests/ticket tests/test_cost.py tests/train/test_callback.py

$(LOWEST)/.ready: pyproject.toml constraints.txt
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) supply/lowest.py torch | cat - constraints.txt > $(LOWEST)/bounds.txt
	$(LOWEST)/bin/python -m pip install --quiet --progress-bar off -c $(LOWEST)/bounds.txt -e . pytest pytest-xdist hypothesis
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

docs: $(READY)  ## the site; a warning, a link or an anchor that leads nowhere is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html
	@echo "open docs/_build/html/index.html"

links: $(READY)  ## links to other sites, too; needs a network
	$(BIN)/python -m sphinx --quiet --builder linkcheck docs docs/_build/links

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLD) $(DIST) $(LOWEST) dist runs docs/_build
