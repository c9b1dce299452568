# `make demo` to try it, `make test` before a commit, `make help` for the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --python $(BIN)/python

IMAGES ?=
LABELS ?=
LABEL_STUDIO_PORT ?= 8080
BACKEND_PORT ?= 9090
RUN_DIR ?= .run

.DEFAULT_GOAL := help
.PHONY: help install dev demo web worker connect doctor status suspects disagreements models test faults fuzz lint bench \
  bench-selection lock vendor compose-test readme-test screenshots clean

help:  ## what there is
	@grep -E '^[a-z -]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 26

install: $(VENV)/.installed  ## everything the service needs, into .venv
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is $$($(PYTHON) -V); Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet --disable-pip-version-check uv
	$(UV) -r requirements.txt
	@touch $@

dev: $(VENV)/.installed-dev  ## the above, and what tests need
$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(UV) -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: install  ## Redis, Label Studio, web and worker with a project of IMAGES=folder; Ctrl-C stops them
	@exec $(BIN)/python -m backend demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(LABELS),--labels "$(LABELS)") \
	  --label-studio-port $(LABEL_STUDIO_PORT) --backend-port $(BACKEND_PORT) --run-dir "$(RUN_DIR)"

web worker: install  ## one part for an existing Label Studio, with settings from .env
	@exec $(BIN)/python -m backend $(if $(wildcard .env),--env-file .env) $@

# Without .env they look at the demo.
SETTINGS := $(addprefix --env-file ,$(firstword $(wildcard .env $(RUN_DIR)/settings.env)))

connect: install  ## attach to a project of an existing Label Studio: make connect PROJECT=3
	@exec $(BIN)/python -m backend $(SETTINGS) connect $(PROJECT)

doctor status suspects: install  ## check every link; how project 3 is: make status PROJECT=3; its labels that look wrong
	@exec $(BIN)/python -m backend $(SETTINGS) $@ $(PROJECT)

disagreements models: install  ## where people disagree in project 3: make disagreements PROJECT=3; its model versions
	@exec $(BIN)/python -m backend $(SETTINGS) $@ $(PROJECT)

lint: dev  ## ruff, mypy, and the floors of the layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A test that fails is run once more when nothing runs beside it; what passes only then is flaky, and both are printed.
# What fails twice fails all. $(1): what to run, $(2): where pytest keeps what failed, for two of them run at once.
TESTED = $(BIN)/python -m pytest -o cache_dir=.test/$(2) $(1)
AGAIN = echo "== failed in company, now alone: $(2) ==" && $(BIN)/python -m pytest -o cache_dir=.test/$(2) $(1) \
  --numprocesses 0 --last-failed --last-failed-no-failures none

# The live ones use two running stacks, that of the demo and one to be broken, which mostly wait: both at once.
test: dev  ## every test; what this machine lacks is skipped with the reason; TESTS=path for some
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else
	@mkdir -p .test
	$(call TESTED,tests/unit --numprocesses 2 --dist loadfile,unit) || { [ $$? -eq 1 ] && $(call AGAIN,tests/unit,unit); }
	@$(call TESTED,tests/faults,faults) >.test/faults.log 2>&1 & faults=$$!; \
	$(call TESTED,--ignore tests/unit --ignore tests/faults,demo); demo=$$?; \
	wait $$faults; faults=$$?; cat .test/faults.log; \
	[ $$demo -ne 1 ] || { $(call AGAIN,--ignore tests/unit --ignore tests/faults,demo); demo=$$?; }; \
	[ $$faults -ne 1 ] || { $(call AGAIN,tests/faults,faults); faults=$$?; }; \
	exit $$((demo + faults > 0))
endif

TIMES ?= 3
faults: dev  ## the real stack broken in every way, TIMES=3 times each: labels lost, time to recover (TIMES=1: shortened)
	FAULT_TIMES=$(TIMES) FAULT_FORM=$(if $(filter 1,$(TIMES)),short,full) FAULTS_JSON=benchmarks/results/faults.json \
	  $(BIN)/python -m pytest --timeout 3600 tests/faults

compose-test: dev  ## docker-compose.yml brought up for real (ENGINE='docker compose' or alike)
	$(BIN)/python tests/compose/run.py

readme-test: dev  ## README's "Try it" in a clean container, clone to first label; benchmarks/results/readme.json (ENGINE=podman)
	$(BIN)/python tests/readme/run.py

screenshots: dev  ## the pictures of docs/images anew: the demo, labeled, in Chromium
	$(BIN)/python scripts/screenshots.py

fuzz: dev  ## 20,000 malformed requests to every route of the running service; benchmarks/results/fuzz.json
	$(BIN)/python -m benchmarks.fuzz

$(VENV)/.installed-bench: $(VENV)/.installed requirements-bench.txt
	$(UV) -r requirements.txt -r requirements-bench.txt
	@touch $@

bench: dev $(VENV)/.installed-bench  ## every benchmark; results in benchmarks/results
	$(BIN)/python -m benchmarks

bench-selection: $(VENV)/.installed-bench  ## accuracy per label beside scikit-activeml: IMAGES='folder …'
	$(BIN)/python -m benchmarks.selection $(if $(IMAGES),--images $(IMAGES))

CUDA := $(addprefix --no-emit-package ,cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cccl \
  nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
  nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 \
  nvidia-nvtx triton)
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header

lock: install  ## compile the requirement files anew; torch pins its CUDA packages itself, so they are left to it
	$(COMPILE) $(CUDA) pyproject.toml --extra onnxruntime --extra s3 -o requirements.txt
	$(COMPILE) $(CUDA) pyproject.toml --extra onnxruntime --extra s3 --extra dev -c requirements.txt -o requirements-dev.txt
	$(COMPILE) $(CUDA) pyproject.toml --extra onnxruntime --extra s3 --extra bench -c requirements.txt -o requirements-bench.txt
	$(COMPILE) requirements-label-studio.in -o requirements-label-studio.txt

vendor: install  ## the libraries of the pages and their tests anew from npm, checked by sha512
	$(BIN)/python scripts/vendor.py

clean:  ## remove what the demo and the tests keep (not the virtual environments)
	rm -rf .run .test/unit .test/demo .test/faults .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
