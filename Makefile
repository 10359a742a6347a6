# make figures   everything that the paper shows, at the quick profile: figures/quick/
# make test      all checks: lint, types, unit tests, notebooks
# make paper     every figure of full scale, drawn anew from the committed results: figures/paper/, RESULTS.md;
#                or those of a notebook: make paper ONLY=04_mnist
# make lab       JupyterLab; its options: make lab LAB="--no-browser"
# make notebooks store fresh outputs in notebooks/
# make site      the executed notebooks and the reference of the library as pages to read offline: build/site
# make benchmarks  speed beside the peers, half an hour on a quiet machine: benchmarks/results.json
# make gpu-check what only a machine with a GPU can show, in at most eight minutes: benchmarks/gpu.json, gpu.md
# make lock      new requirements.lock.txt from the ranges in pyproject.toml
# make clean     remove everything that a command has made, .venv and scratch/ included, but not figures/paper and results/paper
#
# Needs python3.11 and, for the first run, the network. Name another interpreter with make PYTHON=...

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A virtual environment or Jupyter configuration of the caller must not leak in.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV JUPYTER_PATH JUPYTER_CONFIG_DIR JUPYTER_CONFIG_PATH IPYTHONDIR

# The exact versions are known for Linux on x86-64 with Python 3.11; elsewhere the ranges of pyproject.toml decide.
PLATFORM := $(shell uname -s)-$(shell uname -m)-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
LOCK := requirements.lock.txt
PINS := $(if $(filter Linux-x86_64-3.11,$(PLATFORM)),-c $(LOCK))

# DVC wants to know when there is no git around it, as in an unpacked archive.
DVC_WITHOUT_GIT = @git rev-parse --show-toplevel >/dev/null 2>&1 || dvc config --local core.no_scm true

# One process more than there are cores: many tests wait for others that they have started.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((cores < 7 ? cores + 1 : 8)))
PARALLEL := --numprocesses $(WORKERS) --dist loadfile
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=600 --sanitize-with $(CURDIR)/notebooks/nbval.cfg

.PHONY: figures test paper lab notebooks site benchmarks gpu-check lock clean

figures: $(VENV)/notebooks.stamp
	$(DVC_WITHOUT_GIT)
	dvc repro --quiet

# The notebooks are checked as they draw: what they draw is computed once, by the pipeline.
test: $(VENV)/dev.stamp
	$(DVC_WITHOUT_GIT)
	ruff check .
	ruff format --check .
	mypy
	dvc repro --quiet scoreboard@quick
	OMP_NUM_THREADS=1 pytest tests $(PARALLEL)
	OMP_NUM_THREADS=1 pytest $(NBVAL) $(PARALLEL) notebooks

paper: $(VENV)/notebooks.stamp
	OMP_NUM_THREADS=1 python -m reproduction.pipeline.redraw --profile paper $(CHECK) $(ONLY)

lab: $(VENV)/notebooks.stamp
	JUPYTER_CONFIG_PATH=$(CURDIR)/lib/reproduction/pipeline/jupyter jupyter lab $(LAB)

notebooks: figures
	python -m reproduction.pipeline.refresh
	python -m reproduction.pipeline.recipes
	dvc repro --quiet identity

site: $(VENV)/site.stamp
	python -m reproduction.pipeline.site build/site

benchmarks: $(VENV)/dev.stamp
	python -m benchmarks

gpu-check: $(VENV)/dev.stamp
	python -m benchmarks.gpu_check

lock:
	rm -rf .lock-venv
	$(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install --editable '.[notebooks,dev,peers,cluster,site]'
	head -n 2 $(LOCK) > $(LOCK).new
	.lock-venv/bin/pip freeze --exclude-editable >> $(LOCK).new
	mv $(LOCK).new $(LOCK)
	rm -rf .lock-venv

clean:
	rm -rf build $(VENV) .lock-venv .identity .staging scratch figures/quick results/quick data/mnist/MNIST dvc_plots \
		figures/cuda results/cuda params/cuda.yaml \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis lib/*.egg-info
	rm -f .dvc/config.local

$(VENV)/notebooks.stamp: EXTRAS := notebooks
$(VENV)/dev.stamp: EXTRAS := notebooks,dev,peers,cluster,site
$(VENV)/site.stamp: EXTRAS := notebooks,site

$(VENV)/%.stamp: pyproject.toml $(LOCK)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or name yours: make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PINS) --editable '.[$(EXTRAS)]'
	touch $@
