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
#   make stack-up    Prometheus, Alertmanager and Grafana in containers, with the dashboards; make stack-down
#                    (RUNBOOK=https://...: where your readers find docs/alerts.md, for the links of the alerts)
#   make clean       remove what these targets made
#
# Two more measurements take minutes of all cores and are run by hand: benchmarks/fleet.py (500 runs on one Prometheus,
# docs/scale.md) and benchmarks/adaptive_lr.py (docs/adaptive-lr.md).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint bench docs-check programs clean stack-up stack-down
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
	rm -rf $(VENV) .bench-venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

stack-up: $(VENV)/.ready
	@.ci/stack up

stack-down:
	@.ci/stack down
