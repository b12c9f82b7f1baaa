# make demo   from nothing to captions you can look at: runs/demo/gallery.html
# make test   lint, and every test but those of make long
# make quick  the tests that take seconds
# make long   the tests that take many minutes
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
NOTEBOOKS := 01_prepare_data 02_build_index 03_finetune 04_inspect_captions 05_score_and_submit
RUN := runs/demo
SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c

.PHONY: demo test quick long lint kaggle

$(READY): requirements.txt pyproject.toml beit3lib/pipeline/packages.py
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -e ".[test]"
	$(PY) -m beit3lib.pipeline.packages
	touch $@

demo: $(READY)
	@mkdir -p $(RUN)
	@for name in $(NOTEBOOKS); do \
		echo "== $$name"; \
		.venv/bin/papermill --no-progress-bar --log-level ERROR --stdout-file /dev/stdout --kernel python3 \
			notebooks/$$name.ipynb $(RUN)/$$name.ipynb 2>&1 | sed -u '/Kernel is running over TCP/d'; \
	done
	@$(PY) -m beit3lib.pipeline.steps $(RUN)

test: $(READY) lint
	$(PY) -m pytest

quick: $(READY)
	$(PY) -m pytest -m "not slow and not long"

long: $(READY)
	$(PY) -m pytest -m long

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

kaggle: $(READY)
	$(PY) -m beit3lib.pipeline.kaggle runs/kaggle --owner "$(KAGGLE_OWNER)" --attach $(KAGGLE_DATA)
