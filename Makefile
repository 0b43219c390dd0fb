# Every target sets up what it needs: a virtual environment in .venv, with all that is needed here or, for the demo, just
# the package; and the programs in .ci/programs.
#
#   make demo        train a small GPT under the monitor, with its live page     (ARGS=--exit: end with the training)
#   make test        all tests, in random order                                  (ARGS='tests/cli -x')
#                    in the order of an earlier run, by the seed that it printed (ARGS=--randomly-seed=123)
#                    of long matrices, such as that of the learning rates, half; or all (ARGS=--whole)
#   make lint        ruff and mypy
#   make bench       what the monitor costs, against what people use today; and how well the detectors do, where the
#                    labelled curves are (MONITOR_CURVES)                                           (ARGS=--quick)
#   make docs-check  what the documentation shows is run, what it lists is complete
#   make fuzz        the fuzzing tests for some 20 minutes, other examples each time; then by coverage, with atheris
#   make audit       known holes of what is installed, where the data can be had (network)
#   make sbom        sbom.json: what is installed, as CycloneDX
#   make wheel       the wheel, in dist/: the same bytes from the same commit
#   make stack-up    Prometheus, Alertmanager and Grafana in containers, with the dashboards; make stack-down
#                    (RUNBOOK=https://...: where your readers find docs/alerts.md, for the links of the alerts)
#   make clean       remove what these targets made
#
# Three more measurements take minutes of all cores and are run by hand: benchmarks/fleet.py (500 runs on one Prometheus,
# docs/scale.md), benchmarks/adaptive_lr.py (docs/adaptive-lr.md) and benchmarks/soak.py (docs/reliability.md).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint bench docs-check fuzz audit sbom wheel programs clean stack-up stack-down
.DELETE_ON_ERROR:

demo: $(VENV)/.page
	$(BIN)/monitor demo $(ARGS)

test: $(VENV)/.ready programs
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/overhead.py $(ARGS)
	$(BIN)/python benchmarks/detectors.py $(if $(findstring --quick,$(ARGS)),--skip-held-out)

# FUZZ_EFFORT: how many times as many examples as in `make test`.
fuzz: $(VENV)/.ready
	@$(PIP) install --quiet --editable '.[fuzz]' || echo "atheris cannot be installed here: no fuzzing by coverage" >&2
	FUZZ_EFFORT=$${FUZZ_EFFORT:-25} $(BIN)/python -m pytest tests/fuzz tests/server/test_schemathesis.py -n $(WORKERS) $(ARGS)
	$(BIN)/python -m tests.fuzz.guided

audit: $(VENV)/.page .supply-venv/.ready
	$(BIN)/python .ci/audit .supply-venv/bin/pip-audit $(BIN)/python

sbom: $(VENV)/.page .supply-venv/.ready
	.supply-venv/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file sbom.json $(BIN)/python

wheel: $(VENV)/.page
	rm -rf build; umask 022; SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(PIP) wheel --quiet --no-deps --wheel-dir dist .

# Tools that look at an environment have one of their own, so that they do not look at themselves.
.supply-venv/.ready: pyproject.toml
	@test -x .supply-venv/bin/python || $(PYTHON) -m venv .supply-venv
	@.supply-venv/bin/python -m pip --disable-pip-version-check install --quiet 'pip-audit>=2.7' 'cyclonedx-bom>=5.0'
	@touch $@

docs-check: $(VENV)/.ready
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

programs:
	@.ci/programs

# What a run with its page needs, and no more. A torch that is already in the environment stays as it is; only an
# environment without one gets ours.
$(VENV)/.page: pyproject.toml .ci/constraints.txt
	@.ci/programs venv
	@echo "installing into $(VENV) (about a minute, more where torch comes slowly) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install --quiet --constraint .ci/constraints.txt torch
	@$(PIP) install --quiet --editable '.[page]'
	@touch $@

$(VENV)/.ready: $(VENV)/.page
	@.ci/programs
	@echo "installing what tests and checks need into $(VENV) (some minutes) ..."
	@$(PIP) install --quiet --editable '.[all]'
	@touch $@

clean:
	rm -rf $(VENV) .bench-venv .supply-venv build dist sbom.json *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

stack-up: $(VENV)/.ready
	@.ci/stack up

stack-down:
	@.ci/stack down
