# Every target sets up what it needs, on Debian or Ubuntu with python3, git and make.
# `make` alone lists them.

PYTHON := .venv/bin/python
VENV_READY := .venv/.ready
BENCH_READY := .venv/.ready-bench
FUZZ_READY := .venv/.ready-fuzz
# Many tests wait for most of their time, so there are more workers than processors. Files keep the
# order of tests/conftest.py: xdist would leave those of one long test for the end.
TEST_ARGS := --numprocesses 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo check test lab deb guards crash soak fuzz api faults bench bench-slow lint lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV_READY) ## move two small disks from end to end on this machine, and prove them
	@scripts/debian-packages demo
	@$(PYTHON) scripts/demo.py

check: lint ## formatting, lint, types, import rules, unit and conformance tests
	@scripts/debian-packages test
	@$(PYTHON) -m pytest -q --numprocesses 2 --dist loadfile tests/unit tests/conformance

test: lint ## check, and every other test: simulation, fuzzing, real processes
	@scripts/debian-packages test browser packages lab
	@$(PYTHON) -m pytest $(TEST_ARGS)

lab: $(VENV_READY) ## only the tests with real logical volumes, inside a guest; needs root
	@scripts/debian-packages lab
	@FLATSHIP_LAB=all $(PYTHON) -m pytest tests/lab

deb: $(VENV_READY) ## the Debian packages of both ends, into dist
	@scripts/debian-packages packages
	@scripts/build-debs dist
	@ls dist/*.deb

guards: $(VENV_READY) ## remove one guard after another, and see a test fail for each
	@scripts/debian-packages test
	@$(PYTHON) scripts/guards

crash: $(VENV_READY) ## cut the power while disks are received on ext4 and XFS; needs root
	@scripts/debian-packages test
	@PYTHONPATH=tests:tests/integration $(PYTHON) -m crash $(CRASH_ARGS)

soak: $(VENV_READY) ## faults on virtual time, by the hundred thousand; results in tests/simulation/results
	@$(PYTHON) tests/simulation/soak.py --keep tests/simulation/results $(SOAK_ARGS)

fuzz: $(FUZZ_READY) ## every decoder for some seconds, guided by coverage; results in tests/fuzz/results
	@PYTHONPATH=tests $(PYTHON) -m fuzz.run $(FUZZ_ARGS)

api: $(VENV_READY) ## requests of every kind for a real daemon, made of sender/openapi.json
	@PYTHONPATH=tests:tests/integration $(PYTHON) -m api $(API_ARGS)

faults: $(VENV_READY) ## long series of kills, failing system calls or hostile links
	@scripts/debian-packages test
	@PYTHONPATH=tests:tests/integration $(PYTHON) -m series $(FAULTS_ARGS)

bench: $(BENCH_READY) ## Flatship and its peers side by side; results in tests/benchmarks/results
	@scripts/debian-packages bench
	@PYTHONPATH=tests $(PYTHON) -m benchmarks.bench_pair $(BENCH_ARGS)

bench-slow: $(BENCH_READY) ## the same over links of a set rate, from 10 Mbit/s up; needs root
	@scripts/debian-packages bench
	@PYTHONPATH=tests $(PYTHON) -m benchmarks.bench_slow $(BENCH_ARGS)

lint: $(VENV_READY)
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy --strict --no-error-summary
	@MYPYPATH=tests .venv/bin/mypy --strict --no-error-summary -p benchmarks
	@report=$$(.venv/bin/lint-imports 2>&1) || { echo "$$report"; exit 1; }

lock: ## resolve requirements/*.lock again
	@scripts/lock

clean: ## remove what the other targets made here
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# A changed lock or pyproject.toml is installed at the next target; an unchanged one costs nothing.
$(VENV_READY): requirements/dev.lock pyproject.toml scripts/python-env
	@scripts/python-env .venv requirements/dev.lock
	@touch $@

# There are wheels of atheris for some Pythons and processors only; without it fuzzing is unguided.
$(FUZZ_READY): requirements/fuzz.lock $(VENV_READY)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
		--only-binary :all: -r $< || echo "fuzz: atheris cannot be installed here; going on without"
	@touch $@

$(BENCH_READY): requirements/bench.lock $(VENV_READY)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@
