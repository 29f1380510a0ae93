PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CARTPOLE := --method DreamerV2 --env classic_control --env-id CartPole-v1

.PHONY: train test learn

# Train DreamerV2 on CartPole from nothing, then show what the saved model scores.
train: $(INSTALLED)
	$(BIN)/xrl train $(CARTPOLE)
	$(BIN)/xrl test $(CARTPOLE)

# Everything that must hold before a change is merged.
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow" -n 2

# The learning results of docs/benchmarks.md, measured again: some three hours on two cores.
learn: $(INSTALLED)
	$(BIN)/pytest -m slow

$(INSTALLED): requirements.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the pinned versions need Python 3.11 or newer, not %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
