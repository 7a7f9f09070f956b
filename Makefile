# Every target creates what it needs. Nothing but Python >= 3.11, make and a package index is assumed; after
# `make install` everything works offline.
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install --constraint constraints.txt
INSTALLED := $(VENV)/.installed
PACKAGES := $(wildcard *_hf)
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# one thread each, here and in the demo: so small a model gains nothing from more, and loses on a busy machine
PYTEST := $(OFFLINE) OMP_NUM_THREADS=1 $(PYTHON) -m pytest
# two workers take turns at whole files, whose tests share models
SIDE_BY_SIDE := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo demo-vision demo-avae demo-pretrain test test-slow style check results clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv and install the packages with pinned dependencies

$(PYTHON):
	@for python in python3.11 python3 python; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "$$python -m venv $(VENV)"; exec $$python -m venv $(VENV); \
	    fi; \
	done; echo "Python >= 3.11 is needed, found none as python3.11, python3 or python." >&2; exit 1

# torch first and alone, so that no other package chooses its build
$(INSTALLED): setup.cfg pyproject.toml constraints.txt | $(PYTHON)
	$(PIP) $(shell grep '^torch==' constraints.txt)
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## search a faster classifier on embedded data, then use it from elsewhere (minutes)
	$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)/bin/redundancy-hf search recipes/demo.json
	$(OFFLINE) $(VENV)/bin/redundancy-hf classify runs/demo/best

demo-vision: $(INSTALLED) ## train a plain and a shared image classifier on embedded digits and compare (minutes)
	$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)/bin/redundancy-hf train-images recipes/demo_vision.json \
	    --output_dir runs/demo-vision/plain
	$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)/bin/redundancy-hf train-images recipes/demo_vision.json \
	    --sharing_factor 4 --pointwise_sharing_factor 4 --output_dir runs/demo-vision/shared
	$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)/bin/redundancy-hf compare-images --dataset_name digits \
	    --models runs/demo-vision/plain/seed-42 runs/demo-vision/shared/seed-42 --examples_dir runs/demo-vision/examples
	$(OFFLINE) $(VENV)/bin/redundancy-hf classify runs/demo-vision/shared/seed-42 \
	    --images $(addprefix runs/demo-vision/examples/,0_label_7.png 1_label_7.png 2_label_3.png 3_label_5.png)

demo-avae: $(INSTALLED) ## train a plain and an affine autoencoder on turned digits and align some (minutes)
	$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)/bin/redundancy-hf train-avae recipes/demo_avae.json \
	    --transforms none --latent_dim 7 --output_dir runs/demo-avae/vae
	$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)/bin/redundancy-hf train-avae recipes/demo_avae.json --output_dir runs/demo-avae/avae
	$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)/bin/redundancy-hf evaluate-avae --dataset_name digits \
	    --models runs/demo-avae/vae/seed-42 runs/demo-avae/avae/seed-42 \
	    --figures_dir runs/demo-avae/pictures --examples_dir runs/demo-avae/examples
	$(OFFLINE) $(VENV)/bin/redundancy-hf classify runs/demo-avae/avae/seed-42 \
	    --align $(addprefix runs/demo-avae/examples/,0.png 1.png 2.png 3.png)

demo-pretrain: $(INSTALLED) ## pretrain a small shortened model on embedded text with each objective (minutes)
	$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)/bin/redundancy-hf pretrain recipes/demo_pretrain.json

test: $(INSTALLED) ## run the default tests, side by side; then alone those that read a clock
	$(PYTEST) $(SIDE_BY_SIDE) -m "not clock and not slow and not gpu and not network"
	$(PYTEST) -m "clock and not slow and not gpu and not network"

test-slow: $(INSTALLED) ## run the tests that take long
	$(PYTEST) $(SIDE_BY_SIDE) -m "slow and not gpu and not network"

style: $(INSTALLED) ## fix and format the code
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

check: $(INSTALLED) ## lint, check the format and the types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy $(PACKAGES)

results: $(INSTALLED) ## check that every printed number equals the JSON behind it
	$(PYTHON) experiments/render_results.py --check

clean: ## remove caches, build products and the demos' results; .venv and other runs stay
	rm -rf runs/demo runs/demo-vision runs/demo-avae runs/demo-pretrain build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
