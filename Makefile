# make study [PROFILE=smoke], make test, make lab, make teach, make bench; each makes the environment first where it is missing.
PROFILE ?= miniature
CORES ?= $(shell python3 -c "import os; print(os.cpu_count())")
PYTHON := .venv/bin/python
export UV_COMPILE_BYTECODE := 1

.PHONY: study test lab teach bench lock format
.DEFAULT_GOAL := study

study: .venv/ready
	$(PYTHON) -m studylib.run study --profile "$(PROFILE)" --cores $(CORES)
	$(PYTHON) -m studylib.run summary --profile "$(PROFILE)"

test: .venv/ready
	$(PYTHON) -m pytest -n auto --no-loadscope-reorder

lab: .venv/ready
	.venv/bin/jupyter lab --notebook-dir notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

teach: .venv/ready
	$(PYTHON) -m studylib.run stage --stage 07_laboratory --profile "$(PROFILE)"

bench: .venv/ready
	$(PYTHON) tests/bench/bench_speed.py
	$(PYTHON) tests/bench/bench_duplicates.py
	$(PYTHON) tests/bench/bench_judges.py
	$(PYTHON) tests/bench/bench_tables.py
	$(PYTHON) tests/bench/bench_sandbox.py --quick
	$(PYTHON) tests/bench/bench_study.py

# The locked packages, hash-checked, then the library itself and the kernel.
.venv/ready: requirements.lock pyproject.toml
	python3 -c "import sys; sys.exit(sys.version_info < (3, 11) and 'error: Python 3.11 or newer is needed, this is ' + sys.version)"
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check uv==0.13.8
	VIRTUAL_ENV="$(CURDIR)/.venv" .venv/bin/uv pip sync --quiet --require-hashes requirements.lock
	echo "$(CURDIR)" > "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/studylib.pth"
	$(PYTHON) -m ipykernel install --sys-prefix --name multitask-mayhem --display-name "Multitask Mayhem"
	touch $@

lock:
	.venv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --extra dev --extra bench -o requirements.lock pyproject.toml

format:
	.venv/bin/ruff check --fix . && .venv/bin/ruff format studylib tests  # notebooks keep the layout they were written in
