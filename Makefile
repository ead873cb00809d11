# Each target does its own set-up: `make demo` and `make test` run on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard csrc/* csrc/cpu/* csrc/cuda/*)

.PHONY: demo lab test slow parity lint format bench clean

demo: .venv/ready  ## train the small experts (once), merge and evaluate them
	$(BIN)/mergekern demo

lab: .venv/ready  ## train five experts (once), run all methods over them and report
	$(BIN)/mergekern lab make --weaker-base
	$(BIN)/mergekern suite mergekern-lab/weaker.yml
	$(BIN)/mergekern suite mergekern-lab/lab.yml

test: .venv/ready  ## the quick suite
	$(BIN)/python -m pytest -q -n 2

slow: .venv/ready  ## what takes minutes: the lab's claims and the long grids
	$(BIN)/python -m pytest -q -m "slow or demo"

parity: .venv/ready .venv-parity/ready  ## the same recipes by mergekit and by mergekern
	PYTHONPATH=tests/parity $(BIN)/python tests/parity/compare.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

bench: .venv/ready  ## the figures of the README
	$(BIN)/python bench/limits.py
	$(BIN)/python -m pytest -q bench --benchmark-sort=name

# The tested versions; torch first, so that nothing else chooses one.
.venv/ready: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# mergekit has an environment of its own, with the same torch and transformers.
.venv-parity/ready: tests/parity/requirements.txt constraints.txt
	test -x .venv-parity/bin/python || $(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install -q -c constraints.txt torch
	.venv-parity/bin/python -m pip install -q -c constraints.txt -r tests/parity/requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-parity build *.egg-info mergekern/*.so
