# `make demo` and `make test` need Python 3.11 to 3.13 with pip and venv, and make; nothing else.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup system demo unit check test test-backends test-qgis qgis notebooks stress fuzz lint format docs lock image clean

# The first interpreter from 3.11 to 3.13; `make setup PYTHON=/path/to/python` overrides it. TensorFlow has no
# wheel for newer ones.
CANDIDATES := python3 python3.13 python3.12 python3.11 python
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(FITS)' 2>/dev/null && { echo $$p; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/setup.stamp
BACKENDS := $(VENV)/backends.stamp
PYTEST_ARGS ?=
PYTEST_JOBS ?= 2
SOAK_MINUTES ?= 30
MINUTES ?= 10
SEED ?= 1

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "make %-14s %s\n", $$1, $$2 }'

setup: $(STAMP) ## make .venv with the locked versions; a second call installs nothing

$(STAMP): requirements/lock.txt pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' || { \
		echo "error: cannot set up, since $(if $(PYTHON),'$(PYTHON)',none of '$(CANDIDATES)') is$(if \
			$(PYTHON), not) Python 3.11, 3.12 or 3.13, for which TensorFlow has packages" >&2; \
		echo "Install one, or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
		echo "Without TensorFlow, on Python 3.14 too: pip install '.[classify]' makes maps," \
			"'.[jax]' or '.[torch]' trains as well" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "error: cannot make $(VENV), since '$(PYTHON)' has no venv module" >&2; \
		echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BACKENDS): requirements/backends.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-r requirements/backends.txt -c requirements/lock.txt
	@touch $@

system: ## install Debian packages that some tests use (root; elsewhere says what to ask for)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ command -v gdalinfo && command -v strace && command -v chromium && command -v chromedriver && \
			command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged && dpkg -s python3-qgis; } \
			>/dev/null || { apt-get update -q && \
			DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
				gdal-bin strace chromium chromium-driver slurmctld slurmd slurm-client munge python3-qgis; }; \
	else \
		echo "not root, or no apt: ask for the packages gdal-bin, strace, chromium, chromium-driver, slurmctld," \
			"slurmd, slurm-client, munge and python3-qgis; tests that need them skip without them"; \
	fi

demo: setup ## simulate a scene, prepare, train, classify, evaluate (about 3 minutes)
	$(BIN)/python -m lulc.demo

# Processes of their own: what damaged files leave behind in the native libraries that read them, and what dozens
# of trainings leave behind in TensorFlow, decides no other test. The rest waits for browsers and clusters as much
# as it computes, so PYTEST_JOBS processes share it out, each file whole.
DAMAGED := $(wildcard tests/test_hostile_*.py) tests/test_damage.py tests/test_limits.py
TRAINED := tests/test_train_model.py tests/test_training.py tests/test_folds.py tests/test_survival.py

# Tests without the marker `integration`; any of them that loads a framework or Dask, or starts a browser, fails.
unit: setup ## run the unit tests (about a minute)
	$(BIN)/python -m pytest --unit -n $(PYTEST_JOBS) --dist loadfile -rfE $(PYTEST_ARGS)

check: lint unit ## what to run before a commit

test: setup ## run all tests on what is installed
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(DAMAGED)
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(TRAINED)
	$(BIN)/python -m pytest -n $(PYTEST_JOBS) --dist loadfile $(PYTEST_ARGS) $(addprefix --ignore=,$(DAMAGED) $(TRAINED))

test-backends: $(BACKENDS) ## install JAX and PyTorch (CPU), then train and predict on each backend
	$(BIN)/python -m pytest -m backends $(PYTEST_ARGS)

qgis: ## build dist/lulc_maps.zip, the QGIS plug-in
	mkdir -p dist
	rm -rf dist/lulc_maps.zip qgis/lulc_maps/__pycache__
	$(PYTHON) -m zipfile -c dist/lulc_maps.zip qgis/lulc_maps

test-qgis: setup ## the QGIS plug-in, without a window, in the QGIS of Debian (make system)
	$(BIN)/python -m pytest tests/test_qgis.py $(PYTEST_ARGS)

notebooks: setup ## run the notebooks and store their outputs in them
	$(BIN)/python docs/hooks.py

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff format and sort
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: setup ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

stress: setup ## the long tests, then half an hour of the same runs again and again
	$(BIN)/python -m pytest -m stress $(PYTEST_ARGS)
	$(BIN)/python benchmarks/soak.py --minutes $(SOAK_MINUTES)

fuzz: setup ## mutate files of each kind and read them; MINUTES=10 SEED=1
	$(BIN)/python benchmarks/fuzz.py --minutes $(MINUTES) --seed $(SEED)

# uv is told of PyTorch's CPU builds by UV_FIND_LINKS or UV_EXTRA_INDEX_URL.
lock: setup ## write requirements/*.txt anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra cpu --extra dev --extra serve --extra cluster --extra parquet --extra onnx --extra mosaic --universal --python-version 3.11 \
		--custom-compile-command 'make lock' --annotation-style line --quiet -o requirements/lock.txt
	$(BIN)/uv pip compile requirements/backends.in -c requirements/lock.txt --python-version 3.11 \
		--custom-compile-command 'make lock' --annotation-style line --quiet -o requirements/backends.txt
	sed -i 's/+cpu//' requirements/backends.txt  # the release, from wherever pip finds its CPU build

image: ## build the container that clusters ask for
	apptainer build lulc.sif apptainer.def

clean: ## remove what was made, .venv included
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo site
