# `make help` lists what there is. Each target makes the environment first where it is missing.
PROFILE ?= miniature
PYTHON := .venv/bin/python
export UV_COMPILE_BYTECODE := 1
# as many as the laboratory uses, and none that burns a core while it waits (without the short spin two threads take
# twice as long); a stage run by make has its own
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 10000
# this folder's code, wherever the environment was made
export PYTHONPATH := $(CURDIR)
# a user's settings of pip that an environment of its own cannot have
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_HASHES

.PHONY: help study plan test lab teach ship bench lock format
.DEFAULT_GOAL := help

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

study: .venv/ready  ## run the study, or what is missing of it: make study [PROFILE=smoke] [CORES=2]
	@$(PYTHON) -m studylib.run study --profile "$(PROFILE)" $(if $(CORES),--cores $(CORES))
	@$(PYTHON) -m studylib.run summary --profile "$(PROFILE)"

plan: .venv/ready  ## what a run will show and cost: make plan [PROFILE=miniature_full]
	@$(PYTHON) -m studylib.run plan --profile "$(PROFILE)" $(if $(CORES),--cores $(CORES))

lab: .venv/ready  ## open the notebooks in JupyterLab
	$(PYTHON) -m jupyterlab --notebook-dir notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

teach: .venv/ready  ## run the laboratory for a lecture, after the study
	@$(PYTHON) -m studylib.run stage --stage 07_laboratory --profile "$(PROFILE)"

RUN = $(or $(STUDY_RUNS),runs)/$(PROFILE)
ship: .venv/ready  ## copy what the repository shows of a run: make ship PROFILE=miniature_full
	rm -f figures/*
	cp $(RUN)/figures/*.png $(RUN)/figures/*.md figures/
	cp $(addprefix $(RUN)/tables/,$(addsuffix .csv,attack_success arms contrasts components)) figures/
	cp $(RUN)/tables/headline.json $(RUN)/tables/seconds.json figures/
	cp $(RUN)/docs/*.md docs/

test: .venv/ready  ## run the tests
	$(PYTHON) -m pytest -n auto --no-loadscope-reorder

bench: .venv/ready  ## measure speed, duplicates, judges, tables and the sandbox
	$(PYTHON) tests/bench/bench_speed.py
	$(PYTHON) tests/bench/bench_duplicates.py
	$(PYTHON) tests/bench/bench_judges.py
	$(PYTHON) tests/bench/bench_tables.py
	$(PYTHON) tests/bench/bench_sandbox.py --quick
	$(PYTHON) tests/bench/bench_study.py

format: .venv/ready  ## format the code; notebooks keep the layout they were written in
	$(PYTHON) -m ruff check --fix . && $(PYTHON) -m ruff format studylib tests

lock: .venv/ready  ## resolve requirements.lock anew from pyproject.toml
	$(PYTHON) -m uv pip compile --quiet --universal --generate-hashes --no-header --extra dev --extra bench -o requirements.lock pyproject.toml

# The locked packages, hash-checked, then the library itself and the kernel; again in a folder that was copied or moved.
ifneq ($(shell cat .venv/ready 2>/dev/null),$(CURDIR))
.PHONY: .venv/ready
endif
.venv/ready: requirements.lock pyproject.toml
	@python3 -c "import sys; sys.exit(sys.version_info < (3, 11) and 'error: Python 3.11 or newer is needed, this is ' + sys.version)"
	@echo "Making the environment in .venv: about 7 GB of packages are coming, some minutes on a good line."
	@python3 -m venv .venv
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@VIRTUAL_ENV="$(CURDIR)/.venv" $(PYTHON) -m uv pip sync --quiet --require-hashes requirements.lock
	@echo "$(CURDIR)" > "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/studylib.pth"
	@$(PYTHON) -m ipykernel install --sys-prefix --name multitask-mayhem --display-name "Multitask Mayhem" > /dev/null
	@rm -f $@ && printf %s "$(CURDIR)" > $@
