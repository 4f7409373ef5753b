# make train: set up and run the main job.  make test: set up and run the tests.  make check: lint, format, types.
# make test-slow: kill again and again, and look at twenty times as many examples of properties; not part of test.
# make soak: kill trainings of three families 20 times, and compare them with ones that were not killed; not part of test.
# make soak SOAK='--minutes 480' goes on all night.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: train test test-slow soak check format setup clean

train: $(VENV)/.installed
	$(BIN)/atelier train conf/image_vae.yaml

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not ray and not slow" --numprocesses auto --dist worksteal
	$(BIN)/python -m pytest -m "ray and not slow" --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest -m "not ray and not slow" --numprocesses auto --dist worksteal --hypothesis-profile thorough

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.soak $(SOAK)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing Atelier into $(VENV): torch, ray, mlflow; a few minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
