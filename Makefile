# make demo    from nothing to captions you can look at: runs/demo/gallery.html
# make submission  from the WTS download and weights in data/ to both files of a submission, in runs/mine or
#              runs/NAME: make submission NAME=other; the same command resumes
# make test    lint, and every test except those of make long
# make quick   the tests that take seconds
# make long    the tests that take many minutes
# make oldest  the quick tests with the lowest versions that requirements.txt allows
# make latest  install the newest versions instead of those in constraints.txt
# make docs    renew docs/: the README's images and the executed notebooks, from make demo; needs Chromium
# make gpu     the GPU tests, and the GPU benchmark in runs/gpu.json, in nine minutes; with PY=python3, the
#              installed packages are used instead of .venv
# make kaggle  stage everything for Kaggle: make kaggle KAGGLE_OWNER=you KAGGLE_DATA="wts tokenizer weights"
# make badges  links that open the notebooks in Colab and Kaggle:
#              make badges REPOSITORY=https://github.com/you/name
#
# TORCH=cpu    installs PyTorch without CUDA, which takes 1.5 GB instead of 6 GB: make demo TORCH=cpu
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
OLDEST := .venv-oldest
PAPERMILL = $(PY) -m papermill --no-progress-bar --log-level ERROR --stdout-file /dev/stdout --kernel python3
NOTEBOOKS := 01_prepare_data 02_build_index 03_finetune 04_inspect_captions 05_score_and_submit
RUN := runs/demo
# The original training code, which the tests compare with. Its dependencies have stale pins.
ORACLE := beit3-gml==0.1.3
# WordNet from .ci/wordnet.sh, for machines that cannot reach nltk's server; nltk ignores a missing folder.
export NLTK_DATA ?= $(CURDIR)/.nltk_data
# A recipe with a loop or a pipe sets -eo pipefail itself: the make of macOS (3.81) ignores .SHELLFLAGS.
SHELL := /bin/bash
# Idle OpenMP threads sleep: on a busy machine, spinning makes a training step of the tiny model several times
# as slow.
OMP_WAIT_POLICY ?= PASSIVE
export OMP_WAIT_POLICY
ifneq ($(TORCH),)
$(if $(filter cpu,$(TORCH)),,$(error TORCH: expected cpu, or nothing for the default build, got $(TORCH)))
INDEX := --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: demo submission test quick long oldest latest lint docs gpu kaggle badges

$(READY): requirements.txt constraints.txt pyproject.toml beit3lib/pipeline/packages.py
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install $(INDEX) --constraint constraints.txt --editable ".[test]"
	$(PY) -m pip install --quiet --no-deps $(ORACLE)
	$(PY) -m beit3lib.pipeline.packages
	touch $@

demo: $(READY)
	@mkdir -p $(RUN)
	@set -eo pipefail; for name in $(NOTEBOOKS); do \
		echo "== $$name"; \
		$(PAPERMILL) notebooks/$$name.ipynb $(RUN)/$$name.ipynb 2>&1 | \
			awk '!/Kernel is running over TCP/ { print; fflush() }'; \
	done
	@$(PY) -m beit3lib.pipeline.scoring $(RUN)

NAME ?= mine
SUBMISSION_01 := -p dataset wts
SUBMISSION_03 := -p num_gpus 0
SUBMISSION_04 := -p num_gpus 0
submission: $(READY)
	@mkdir -p runs/$(NAME)
	@set -e; $(foreach name,$(NOTEBOOKS),echo "== $(name)"; $(PAPERMILL) notebooks/$(name).ipynb \
		runs/$(NAME)/$(name).ipynb -r run $(NAME) $(SUBMISSION_$(firstword $(subst _, ,$(name))));)
	@$(PY) -m beit3lib.pipeline.scoring runs/$(NAME)

# Two processes; the tests of a file share one, because they share fixtures. Files start in their order: the
# demo is early.
test: $(READY) lint
	$(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

quick: $(READY)
	$(PY) -m pytest -m "not slow and not long"

long: $(READY)
	$(PY) -m pytest -m long

latest: $(READY)
	$(PY) -m pip install $(INDEX) --upgrade --upgrade-strategy eager --editable ".[test]"

# PyTorch is the tested version: for Linux its old releases exist only with 3 GB of CUDA libraries.
# `make oldest OLDEST_TORCH="torch==2.6.0 torchvision==0.21.0"` downloads them. timm 1.0.15 prints the ignored
# warning with a newer PyTorch, and tests of error messages expect nothing else on stderr.
OLDEST_TORCH ?= $(shell grep -E '^torch(vision)?==' constraints.txt)
oldest: $(READY)
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	grep -v '^torch' requirements.txt >$(OLDEST)/requirements.in
	printf '%s\n' $(OLDEST_TORCH) >>$(OLDEST)/requirements.in
	.venv/bin/uv pip compile --quiet --resolution lowest-direct --python $(OLDEST)/bin/python \
		$(OLDEST)/requirements.in --output-file $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install -r $(OLDEST)/requirements.txt pytest hypothesis ruff nbstripout
	$(OLDEST)/bin/python -m pip install --quiet --no-deps $(ORACLE)
	$(OLDEST)/bin/python -m beit3lib.pipeline.packages
	PYTHONPATH=$(CURDIR) PYTHONWARNINGS='ignore:`torch.jit.interface`:FutureWarning' \
		$(OLDEST)/bin/python -m pytest -m "not slow and not long"

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

docs: $(READY)
	rm -rf $(RUN)
	$(MAKE) demo RUN=$(RUN)
	PYTHONPATH=tests $(PY) -m benchmarks.pictures $(RUN)

# Needs no PyAV, papermill or package index. The benchmark writes its file after every quantity, so a timeout
# loses only the rest.
GPU_OPTIONS ?= --model base
GPU_SECONDS ?= 265# each for the tests and the benchmark
gpu: export PYTHONPATH := $(CURDIR):$(CURDIR)/tests:$(PYTHONPATH)
gpu: $(if $(filter .venv/%,$(PY)),$(READY))
	@mkdir -p runs
	@status=0; timeout $(GPU_SECONDS) $(PY) -m pytest -m gpu tests/test_gpu.py || status=$$?; \
	timeout $(GPU_SECONDS) $(PY) -m benchmarks.speed $(GPU_OPTIONS) --out runs/gpu.json || status=$$?; \
	exit $$status

kaggle: $(READY)
	$(PY) -m beit3lib.pipeline.kaggle runs/kaggle --owner "$(KAGGLE_OWNER)" --attach $(KAGGLE_DATA)

badges: $(READY)
	$(PY) .ci/badges.py $(REPOSITORY)
