# make quickstart   train and evaluate a detector on real images (about 6 minutes on 2 cores)
# make test         every proof once (about 15 minutes on 2 cores)
# make test-all     all tests: every network in every test, every config, every kind of detector in every format
# make lint         ruff, black and mypy
# make site         these pages as a site, build/site/index.html
# make check        the tests that developers run daily, some 3 minutes
# make resume-proof compares a run killed at 20 random moments with an undisturbed one (about 4 minutes)
# make fuzz         feeds tens of thousands of damaged files to every reader (half an hour)
# make benchmark    trains every config of configs/quickstart and records the results for model_zoo.md (half an hour on 2 cores)
# make search-demo  DetNAS on crowded digits: supernet, search, training of the found network (15 to 20 minutes on 2 cores)
# make search-proof the same with five seeds: each found network against random ones of its cost (2.5 hours on 2 cores)
# make study        trains many networks alike: what predicts AP, do searches find better ones? (days on 2 cores; continues where it stopped)
# make recipes      compares `backbones recipe` with recipes by hand on four small data sets (hours on one core)
# make transfer     compares EfficientNet-Lite0 with ImageNet weights and from scratch, on digits (about 40 minutes on one core)
# STACK=current|compiled|auto chooses the versions in .venv, see requirements/setup.sh. PYTHON=/path/to/python uses an environment that
# already has detectron2, and installs nothing.

STACK := auto
unexport PYTHONDONTWRITEBYTECODE # every interpreter that a test starts would compile all code again
ifeq ($(origin PYTHON),command line)
ready :=
else
# ignore PYTHON in the shell's environment
PYTHON := .venv/bin/python
ready := .venv/.installed
# rebuild if the requested stack differs from the installed one
built := $(shell cat .venv/.installed 2>/dev/null)
ifneq ($(filter-out auto $(built),$(STACK)),)
.PHONY: .venv/.installed
endif
endif

.PHONY: help setup quickstart test test-all lint check resume-proof fuzz site benchmark search-demo search-proof study transfer recipes lock clean
help:
	@sed -n '/^#/!q; s/^# //p' Makefile

setup: $(ready)

.venv/.installed: $(wildcard requirements/*.txt) requirements/setup.sh setup.py
	@sh requirements/setup.sh $(STACK)

quickstart: $(ready)
	@$(PYTHON) -m backbones.tools.quickstart

test: $(ready)
	$(PYTHON) -m pytest -n 3

test-all: $(ready)
	$(PYTHON) -m pytest -n 2 -m ""

lint: $(ready)
	$(PYTHON) -m ruff check --quiet .
	$(PYTHON) -m black --check --quiet .
	$(PYTHON) -m mypy

# separate tools that read the code without importing it. With --quiet, --strict would miss warnings
site: build/site-venv/.installed
	NO_MKDOCS_2_WARNING=1 build/site-venv/bin/mkdocs build --strict

build/site-venv/.installed: requirements/docs.txt
	rm -rf build/site-venv
	$(or $(BASE_PYTHON),python3) -m venv build/site-venv
	build/site-venv/bin/pip install --quiet --require-hashes -r requirements/docs.txt
	touch $@

check: $(ready)
	$(PYTHON) -m pytest -n 2 -m "not slow and not whole"

resume-proof: $(ready)
	KILLS=20 $(PYTHON) -m pytest tests/test_resume.py -m ""

fuzz: $(ready)
	FUZZ_EXAMPLES=1500 $(PYTHON) -m pytest tests/test_fuzz.py --timeout 1800

benchmark: $(ready)
	$(PYTHON) -m backbones.tools.benchmark
	$(PYTHON) -m backbones.tools.docs

search-demo: $(ready)
	@$(PYTHON) -m backbones.tools.search_demo

search-proof: $(ready)
	for seed in 1 2 3 4 5; do \
		$(PYTHON) -m backbones.tools.search_demo --seed $$seed --output output/search_demo_$$seed --proof 4 --json backbones/zoo/one_shot.json || exit; \
	done
	$(PYTHON) -m backbones.tools.docs

study: $(ready)
	OMP_NUM_THREADS=1 $(PYTHON) -m backbones study --jobs 2
	$(PYTHON) -m backbones.tools.docs

transfer: $(ready)
	OMP_NUM_THREADS=1 $(PYTHON) -m backbones.tools.transfer
	$(PYTHON) -m backbones.tools.docs

recipes: $(ready)
	OMP_NUM_THREADS=1 $(PYTHON) -m backbones.tools.recipes

# renew the locks after a change of requirements/*.in; needs uv
UV_COMPILE = uv pip compile --universal --generate-hashes --no-header --no-annotate --quiet
lock:
	cd requirements && $(UV_COMPILE) --python-version 3.10 --allow-unsafe build.in -o build.txt
	cd requirements && $(UV_COMPILE) --python-version 3.11 --override override.in current.in -o current.txt
	cd requirements && $(UV_COMPILE) --python-version 3.10 --override override-compiled.in compiled.in -o compiled.txt
	cd requirements && $(UV_COMPILE) --python-version 3.11 docs.in -o docs.txt

clean:
	rm -rf .venv build *.egg-info
