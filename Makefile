# make demo | test | lint | clean; each sets up .venv first where it needs it
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.autoprune-installed

.PHONY: setup demo test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "autoprune needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.12 $(or $(MAKECMDGOALS),setup)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/autoprune demo

# Tests that fork, or start clusters, have processes of their own: mostly they wait, so they run side by side.
# So does the made-up GPU, which torch never forgets.
test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not alone" --ignore tests/device
	@$(BIN)/python -m pytest -m alone tests/executors > .clusters.log 2>&1 & clusters=$$!; \
	$(BIN)/python -m pytest tests/device > .device.log 2>&1 & device=$$!; \
	$(BIN)/python -m pytest -m alone --ignore tests/executors --ignore tests/device; others=$$?; \
	wait $$clusters; clusters=$$?; wait $$device; device=$$?; cat .clusters.log .device.log; rm .clusters.log .device.log; \
	test $$others -eq 0 -a $$clusters -eq 0 -a $$device -eq 0

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
