# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer and make, nothing else.
# The first call makes .venv (about 7 GB on disk with the CUDA libraries of PyTorch, 3 to 10 minutes).

# The interpreter that .venv is made from; override with `make PYTHON=/path/to/python3.12 test`.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)

RUN := .venv/bin/python
INSTALLED := .venv/.installed

# Nothing phones home from a job, a test or a benchmark.
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

# Two processes, each with a Ray of its own; modules stay together (tests/conftest.py).
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.NOTPARALLEL:  # two targets at once would each start a Ray
.PHONY: help demo test test-all lint audit format benchmarks clean distclean FORCE

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(INSTALLED)  ## the whole main job on generated pictures; results in demo/
	$(RUN) jobs/demo.py --output demo

test: lint  ## linters, types and all tests but the slow ones (at most 12 minutes on two cores)
	$(RUN) -m pytest $(SIDE_BY_SIDE)

test-all: lint  ## the same with the slow tests
	$(RUN) -m pytest $(SIDE_BY_SIDE) -m "slow or not slow"

lint: $(INSTALLED)  ## linters and types only
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

audit: $(INSTALLED)  ## pins, licences and, where the network answers, known vulnerabilities
	PYTHON=$(RUN) .ci/audit

format: $(INSTALLED)  ## rewrite the files as `make lint` wants them
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

benchmarks: $(INSTALLED)  ## side by side with peers; rewrites docs/benchmarks.md
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[crf_peer]"
	@set -e; for script in benchmarks/*.py; do \
		if [ $$script != benchmarks/report.py ]; then echo "== $$script"; $(RUN) $$script; fi; done

clean:  ## remove caches and the demo's results
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf .venv

# A .venv that does not start, or that belongs to a checkout elsewhere (a moved or copied folder), is made again even
# when its stamp is newer than pyproject.toml. The check runs in jobs/, where only an installed package can be imported.
IS_OURS := import os, segcore; assert os.path.samefile(os.path.dirname(segcore.__file__), "../segcore"); print("ok")
ifneq ($(shell cd jobs && ../$(RUN) -c '$(IS_OURS)' 2>/dev/null),ok)
$(INSTALLED): FORCE
endif

$(INSTALLED): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: no Python 3.11 or newer on PATH; install one, or run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
		exit 1; fi
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "error: $(PYTHON) does not start or is older than 3.11; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
		exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; fi
	@rm -f $(INSTALLED)
	@if ! $(RUN) -m pip --version >/dev/null 2>&1; then \
		echo "making .venv with $(PYTHON); the first installation takes some minutes"; \
		rm -rf .venv && "$(PYTHON)" -m venv .venv; fi
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e ".[test,benchmarks,server,export]"
	@touch $(INSTALLED)
