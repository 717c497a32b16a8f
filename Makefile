# Each target makes its own .venv when it is missing and reuses it when it is not.
#   make demo   make test   make test-oldest   make lint   make timm-suite   make benchmark   make chaos
#   make ecosystem   make hub-matrix   make weights-check   make fuzz   make steady
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# for the oldest versions that are supported; the oldest Python too, where there is one
PYTHON_OLDEST ?= $(shell python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
OLDEST := .venv-oldest
ECOSYSTEM := .venv-ecosystem

.PHONY: demo test test-all test-oldest lint format timm-suite benchmark chaos fuzz steady ecosystem hub-matrix \
	weights-check clean
.DELETE_ON_ERROR:

$(VENV)/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/python train_scripts/demo.py

# What is marked slow is left out, and counted at the end.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m 'not gpu and not hub_matrix and not ecosystem'

$(OLDEST)/.installed: pyproject.toml tests/oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON_OLDEST) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint tests/oldest.txt \
		--editable '.[demo]' pytest pytest-timeout pytest-xdist setuptools
	touch $@

# The suite with the oldest versions of everything (exact: tests/oldest.txt); tests of pushing skip, they need a newer client.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n 2 -m 'not gpu and not hub_matrix and not ecosystem'

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# timm's own tests/test_models.py, from its source distribution, on every name that we register (slow).
timm-suite: $(VENV)/.installed-dev
	$(BIN)/python tests/timm_suite/run.py

benchmark: $(VENV)/.installed-dev
	$(BIN)/python train_scripts/benchmark.py

# Runs that are killed, out of disk space or robbed of their newest checkpoint end like uninterrupted ones (minutes).
chaos: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 PYTHONPATH=train_scripts $(BIN)/python tests/chaos.py

# A table of what users get wrong: one line and status 2 for each, nothing hangs, nothing is changed (minutes).
fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python tests/fuzz

# Memory and open files of every task and mixer over 2,000 steps (minutes).
steady: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/steady.py

# Every family through a loopback Hub by both upload protocols, pushes killed at every request, faults that take minutes.
hub-matrix: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m hub_matrix --timeout 1800

# Lightning, transformers, segmentation_models_pytorch, torch_uncertainty and onnxruntime with our models and tasks, in an
# environment that lies beside the other and sees its packages.
$(ECOSYSTEM)/.installed: $(VENV)/.installed-dev tests/ecosystem/requirements.txt
	test -x $(ECOSYSTEM)/bin/python || $(BIN)/python -m venv $(ECOSYSTEM)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(ECOSYSTEM)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
	$(ECOSYSTEM)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/ecosystem/requirements.txt
	touch $@

ecosystem: $(ECOSYSTEM)/.installed
	$(ECOSYSTEM)/bin/python -m pytest -m ecosystem tests/ecosystem tests/drop_in/test_timms_scripts.py

# Runs the line that every results.json in model_cards/weights quotes and compares its top-1: make weights-check DATA=path/to/cifar100
weights-check: $(VENV)/.installed-dev
	$(BIN)/python tests/weights_check.py $(if $(DATA),--data $(DATA))

clean:
	rm -rf $(VENV) $(OLDEST) $(ECOSYSTEM) .timm_suite .pytest_cache .mypy_cache .ruff_cache build *.egg-info
