# make demo    the same Pool job over stock multiprocessing and over mpshm, side by side
# make test    everything a change must pass: lint, types, C core under sanitizers, wheel, pytest
# make docs    the site with the documentation, in .build/docs; a link that leads nowhere is an error
# make bench   ratios to stock in a few minutes (QUICK=1: under one); ARGS=--queues, ARGS=--limits: queues,
#              idle processes and limits; ARGS=--full: all
# make bench-against BASE=main  this tree against another revision of it: fifteen minutes
# make conformance  CPython's own tests against us, with every Python found: hours
#                   (make conformance-quick: a part of them with this one, three minutes)
# make pythons everything on Debian's Pythons, 3.13 to 3.15, in a chroot that it makes (Linux, root):
#              hours; ARGS="3.14 tests" is one Python and one part
# make clients real programs, stock and swapped (Python 3.11, 3 GB of packages): half an hour
# make tools   a notebook, and a program frozen by PyInstaller, with their packages (200 MB)
# make cross   the C core's tests for 32 bits, for musl and for aarch64 (by qemu's user mode)
# make wheels  the sdist and the wheels, repaired for every Linux, installed and tried on every Python found
# make stress  every order of steps in large models; a kill and a pause at every step of the core, for
#              every kind of queue; a peer that overwrites all that is shared; 4,000 processes; queues
#              and pools whose processes are killed at random: an hour and a quarter
#              (make stress-large: the tests that need 14 GiB)
# Each sets up what it needs in .build/ and leaves the rest of the machine alone.

PYTHON ?= python3
BUILD := $(CURDIR)/.build
VENV := $(BUILD)/venv
BIN := $(VENV)/bin
CLIENTS := $(BUILD)/clients-venv
SOURCES := pyproject.toml setup.py MANIFEST.in mpshm.pth _mpshm_start.py $(wildcard mpshm/*.py mpshm/*.pyi mpshm/_*/*.py mpshm/csrc/*)

.PHONY: demo docs test test-require test-off test-debug lint typecheck core-test cross wheels bench \
    bench-against stress stress-large tools clients conformance conformance-quick pythons clean

demo: $(BUILD)/installed $(BUILD)/demo-deps
	$(BIN)/python examples/demo.py

# All tests three times.  require: through shared memory, and a message that takes the plain road
# without need is an error.  off: the plain road alone, which macOS and some sandboxes have; what only
# shared memory can pass is skipped there, with its reason.  Then require with the debug build: its
# assertions hold, each arena is walked when it ends, and memory is refused.
test: lint core-test test-require test-off test-debug

PYTEST = mkdir -p $(BUILD)/run && cd $(BUILD)/run && env $(1) $(BIN)/python -m pytest -q $(CURDIR)/tests $(ARGS)

# Under `make -j2` nothing is installed in the environment that tests run in.
test-require test-off test-debug: | $(BUILD)/typing-deps

test-require: $(BUILD)/installed
	$(call PYTEST,MPSHM=require)

test-off: $(BUILD)/installed
	$(call PYTEST,MPSHM=off)

test-debug: $(BUILD)/debug/installed
	$(call PYTEST,MPSHM=require MPSHM_DEBUG=1 PYTHONPATH=$(BUILD)/debug)

lint: $(BUILD)/test-deps typecheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing/user.py
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -fsyntax-only mpshm/csrc/*.c

# What a user's program and the documents' examples are to another type checker than mypy.
typecheck: $(BUILD)/typing-deps $(BUILD)/installed
	$(BIN)/python tests/kit/documents.py $(BUILD)/examples
	cp tests/typing/* $(BUILD)/examples
	$(BIN)/basedpyright --pythonpath $(BIN)/python -p $(BUILD)/examples

docs: $(BUILD)/docs-deps $(BUILD)/installed
	$(BIN)/sphinx-build -q -E -W --keep-going -c docs . $(BUILD)/docs
	@echo "written: $(BUILD)/docs/index.html"

# One after the other, also under `make -j2 test`: its tests have enough to do with themselves.
core-test:
	$(MAKE) -j1 -C tests/csrc check killpoints BUILD=$(BUILD)/csrc

cross:
	$(MAKE) -C tests/csrc cross BUILD=$(BUILD)/csrc

# With an sdist of its own: what is installed is not made anew when tests or documents change.
wheels: $(BUILD)/wheels-deps
	rm -rf $(BUILD)/sdist
	$(BIN)/python -m build --sdist -o $(BUILD)/sdist . > $(BUILD)/sdist.log 2>&1 || { cat $(BUILD)/sdist.log; exit 1; }
	cd tests && $(BIN)/python -m wheels $(BUILD)/sdist/mpshm-*.tar.gz $(BUILD)/wheels $(PYTHONS)

bench: $(BUILD)/installed $(BUILD)/bench-deps
	$(BIN)/python -m bench.run $(ARGS)

# Both builds have a folder of their own, and the packages they need from the same environment.
BASE ?= HEAD
AGAINST := $(BUILD)/against
OLD = $(AGAINST)/$(or $(shell git rev-parse --verify --short=12 '$(BASE)^{commit}'),$(error no revision $(BASE)))

bench-against: $(BUILD)/bench-deps $(AGAINST)/tree/installed
	$(MAKE) --no-print-directory $(OLD)/installed
	$(BIN)/python -m bench.against $(OLD)/site $(AGAINST)/tree/site $(ARGS)

stress: $(BUILD)/installed $(BUILD)/demo-deps
	cd tests && $(BIN)/python -m models --large
	$(MAKE) -C tests/csrc killpoints-all hostile-all crowds races BUILD=$(BUILD)/csrc
	cd tests && $(BIN)/python -m stress $(ARGS)

stress-large: $(BUILD)/installed
	mkdir -p $(BUILD)/run
	cd $(BUILD)/run && MPSHM=require $(BIN)/python -m pytest -q -m large --timeout=1800 $(CURDIR)/tests $(ARGS)

# Their packages are too large for `make test`, which skips these two.
tools: $(BUILD)/installed
	mkdir -p $(BUILD)/run
	test -d $(BUILD)/tools-venv || $(PYTHON) -m venv $(BUILD)/tools-venv
	$(BUILD)/tools-venv/bin/pip install -q -r tests/tools-requirements.txt
	$(BUILD)/tools-venv/bin/pip install -q --force-reinstall $(BUILD)/dist/*.whl
	cd $(BUILD)/run && MPSHM=require $(BUILD)/tools-venv/bin/python -m pytest -q -m "large or not large" \
	    --timeout=1800 $(CURDIR)/tests/test_notebook.py $(CURDIR)/tests/test_frozen.py $(ARGS)

# Every Python there is: PYTHONS="python3.10 /opt/python3.13/bin/python" names others.
PYTHONS ?= $(PYTHON) $(wildcard $(HOME)/.pyenv/versions/3.1[02-9].*/bin/python)

conformance: $(BUILD)/installed
	cd tests && $(BIN)/python -m conformance.every $(BUILD)/dist/mpshm-*.tar.gz $(PYTHONS) -- --jobs 2 $(ARGS)

# 2: this Python comes without the suites, and that has been said.
conformance-quick: $(BUILD)/installed
	cd tests && $(BIN)/python -m conformance --quick --jobs 2 --python $(BIN)/python || [ $$? = 2 ]

pythons:
	cd tests && $(PYTHON) -m pythons $(ARGS)

clients: $(BUILD)/installed $(BUILD)/clients-deps
	$(CLIENTS)/bin/pip install -q --force-reinstall --no-deps $(BUILD)/dist/*.whl
	cd tests && $(CLIENTS)/bin/python -m clients $(ARGS)

clean:
	rm -rf $(BUILD) build dist mpshm.egg-info

$(BUILD)/clients-deps: tests/clients/requirements.txt
	test -d $(CLIENTS) || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install -q -r $< 'cffi>=1.16' 'cloudpickle>=2.2' psutil
	touch $@

$(VENV):
	$(PYTHON) -m venv $@

$(BUILD)/test-deps: tests/requirements.txt | $(VENV)
	$(BIN)/pip install -q -r $<
	touch $@

$(BUILD)/typing-deps: tests/typing/requirements.txt | $(BUILD)/installed
	$(BIN)/pip install -q -r $<
	touch $@

$(BUILD)/docs-deps: docs/requirements.txt | $(VENV)
	$(BIN)/pip install -q -r $<
	touch $@

$(BUILD)/wheels-deps: tests/wheels/requirements.txt | $(VENV)
	$(BIN)/pip install -q -r $<
	touch $@

$(BUILD)/demo-deps: examples/requirements.txt | $(VENV)
	$(BIN)/pip install -q -r $<
	touch $@

$(BUILD)/bench-deps: bench/requirements.txt | $(VENV)
	$(BIN)/pip install -q -r $<
	touch $@

# The sdist is built, the wheel from the sdist, and the wheel is what everything runs on.
$(BUILD)/installed: $(SOURCES) $(BUILD)/test-deps
	rm -rf $(BUILD)/dist
	MPSHM_CORE=require $(BIN)/python -m build -o $(BUILD)/dist . > $(BUILD)/build.log 2>&1 || { cat $(BUILD)/build.log; exit 1; }
	$(BIN)/pip install -q --force-reinstall $(BUILD)/dist/*.whl
	touch $@

# Beside it the core with its assertions and with what tests ask of it, from the same sdist.
$(BUILD)/debug/installed: $(BUILD)/installed
	rm -rf $(BUILD)/debug
	MPSHM_CORE=require MPSHM_DEBUG=1 $(BIN)/pip install -q --no-deps --no-cache-dir --target $(BUILD)/debug \
	    $(BUILD)/dist/*.tar.gz
	touch $@

$(AGAINST)/tree/installed: $(BUILD)/installed
	rm -rf $(@D)
	$(BIN)/pip install -q --no-deps --target $(@D)/site $(BUILD)/dist/*.whl
	touch $@

$(AGAINST)/%/installed: | $(BUILD)/test-deps
	rm -rf $(@D)
	mkdir -p $(@D)/src
	git archive $* | tar -x -C $(@D)/src
	$(BIN)/python -m build -o $(@D)/dist $(@D)/src > $(@D)/build.log 2>&1 || { cat $(@D)/build.log; exit 1; }
	$(BIN)/pip install -q --no-deps --target $(@D)/site $(@D)/dist/*.whl
	touch $@
