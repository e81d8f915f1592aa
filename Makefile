# Two commands: `make demo` runs the whole story, `make test` the test suite. Both set up .venv when it is missing.
PYTHON ?= python3.11
BIN = .venv/bin

.PHONY: demo test setup clean

demo: .venv/demo
	$(BIN)/python -m amp_min.demo

test: .venv/test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup tests

setup: .venv/test

.venv/demo: requirements.txt
	test -d .venv || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

.venv/test: .venv/demo tests/requirements.txt
	$(BIN)/python -m pip install -q -r tests/requirements.txt
	touch $@

clean:
	rm -rf runs
