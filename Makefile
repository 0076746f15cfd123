# The one list of commands; CI calls the same. `make help` prints it.
#
# Two environments, because the checkout's fibers/ would shadow an installed one:
#   .venv              the checkout itself, compiled in place (an editable install): what you edit is what runs.
#                      `python -m benchmarks`, the examples, ruff and mypy use it.
#   build/test-<name>  what a user gets: fibers installed from the sdist, never the checkout. Tests run from
#                      build/run, so that neither pytest nor a child it starts finds the checkout's fibers/ in its
#                      working directory. build/real-<name> is the same with the libraries of tests/real.
# Stamp files keep a second call fast; `make clean` removes everything that make made.

PYTHON ?= python3
VENV := .venv
TEST_ENV ?= build/test-$(subst /,_,$(PYTHON))
REAL_ENV := build/real-$(subst /,_,$(PYTHON))
SUITES_ENV := build/suites-$(subst /,_,$(PYTHON))
TESTS ?= tests
BENCH ?= all
ARGS ?=
# The suite runs once on each of these; empty: on each that can be had here.
DRIVERS ?=
# Drivers that must be there: a test which needs one of these fails where it would be skipped.
export FIBERS_REQUIRE ?= uring,epoll,kqueue
# On Linux the kqueue driver is built on a stand-in of the tests' own; `make build` leaves it out.
export FIBERS_STAND_IN := 1

C_SOURCES := setup.py pyproject.toml MANIFEST.in fibers/driver/build.py $(wildcard fibers/driver/*.[ch]) \
	$(wildcard tests/driver/kqueue/*.c tests/driver/kqueue/sys/*.h)
SDIST_SOURCES := $(C_SOURCES) README.md $(shell find fibers -name '*.py' -o -name '*.pyi' -o -name py.typed)
SDIST := build/sdist.stamp
PIP := -m pip --disable-pip-version-check -q

# Run pytest of the test environment in an empty directory; paths in TESTS are the checkout's.
PYTEST = mkdir -p build/run && cd build/run && FIBERS_INSTALLED=1 $(abspath $(TEST_ENV))/bin/pytest \
	-c $(CURDIR)/pyproject.toml --rootdir $(CURDIR)

# tests/driver makes its own drivers, all of them: once is enough.
DRIVER_TESTS = $(filter tests/driver%,$(TESTS))

.PHONY: help demo test installed forbidden lint types bench table build soak mutants sanitize stdlib real suites develop packages clean
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/develop.stamp  ## set up, then serve thousands of connections for a few seconds and shut down as a tree
	$(VENV)/bin/python examples/demo.py

test: $(TEST_ENV)/installed.stamp  ## set up, build the sdist, install it, run the tests against it on every driver (TESTS=..., ARGS=..., PYTHON=..., DRIVERS=epoll)
	@mkdir -p build/run; cd build/run; more= failed=; \
	drivers="$(DRIVERS)"; : $${drivers:=$$($(abspath $(TEST_ENV))/bin/python -c 'import fibers.driver as d; print(*d.available())')}; \
	for driver in $${drivers:-none}; do \
		echo "--- tests on $$driver"; \
		(cd $(CURDIR) && export FIBERS_DRIVER=$$driver && $(PYTEST) $(abspath $(TESTS)) $$more $(ARGS)) || failed="$$failed $$driver"; \
		$(if $(DRIVER_TESTS),break,more=--ignore=$(CURDIR)/tests/driver); \
	done; \
	[ -z "$$failed" ] || { echo "tests failed on:$$failed"; exit 1; }

installed: $(TEST_ENV)/installed.stamp  ## what test sets up

forbidden: $(TEST_ENV)/installed.stamp  ## the tests with io_uring forbidden, as in a container, and nobody choosing a driver
	mkdir -p build/run && cd build/run && $(abspath $(TEST_ENV))/bin/python $(CURDIR)/tests/forbid_uring.py EPERM \
		$(abspath $(TEST_ENV))/bin/python -m fibers info
	export FIBERS_REQUIRE=epoll; $(TEST_ENV)/bin/python tests/forbid_uring.py EPERM \
		bash -c '$(PYTEST) $(CURDIR)/tests --ignore=$(CURDIR)/tests/driver $(ARGS)'

lint: $(VENV)/lint.stamp  ## ruff: rules and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/lint.stamp  ## mypy --strict
	$(VENV)/bin/mypy --strict fibers benchmarks examples

bench: $(VENV)/bench.stamp  ## every benchmark beside its peers; one of them: BENCH=echo ARGS='--json'
	$(VENV)/bin/python -m benchmarks $(BENCH) $(ARGS)

table: $(VENV)/bench.stamp  ## what cancellation does in fibers, trio, asyncio and gevent, side by side
	$(VENV)/bin/python examples/cancellation_table.py

build: $(SDIST)  ## the sdist and a wheel of it, in dist/
	FIBERS_STAND_IN=0 $(TEST_ENV)/bin/python $(PIP) wheel --no-deps -w dist dist/fibers_io-*.tar.gz
	@ls -l dist

soak: $(TEST_ENV)/installed.stamp  ## races, models and simulations at full length (minutes; FIBERS_DRIVER=... for another driver)
	export FIBERS_SOAK=1; $(PYTEST) -s -o faulthandler_timeout=3600 \
		$(abspath $(shell grep -lwE 'soak|FIBERS_SOAK' tests/test_*.py) tests/driver/test_fuzz.py tests/driver/test_stress.py) $(ARGS)

stdlib: $(VENV)/develop.stamp  ## CPython's own test files, patched and unpatched, side by side (ARGS='test_socket --driver epoll')
	cd tests && PYTHONPATH=$(CURDIR) $(CURDIR)/$(VENV)/bin/python -m stdlib $(ARGS)

real: $(REAL_ENV)/installed.stamp  ## real libraries, programs and servers, all of them there (ARGS='-k celery'; FIBERS_SOAK=1 for full length)
	mkdir -p build/run && cd build/run && FIBERS_REAL=1 $(abspath $(REAL_ENV))/bin/pytest \
		-c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(CURDIR)/tests/real $(ARGS)

suites: $(SUITES_ENV)/installed.stamp  ## the own tests of requests, urllib3, PyMySQL, psycopg 3 and redis-py, plain and in fibers, side by side (minutes; ARGS='requests')
	mkdir -p build/run && cd build/run && $(abspath $(SUITES_ENV))/bin/python $(CURDIR)/tests/real/suites.py $(ARGS)

mutants: $(VENV)/lint.stamp  ## change one line at a time and see the test of the rule that it breaks fail (minutes)
	cd tests && $(CURDIR)/$(VENV)/bin/python -m mutants $(ARGS)

sanitize: $(VENV)/lint.stamp  ## the driver's contract tests under ASan and UBSan
	PYTHON=$(CURDIR)/$(VENV)/bin/python bash tests/driver/sanitize.sh

develop: $(VENV)/lint.stamp  ## .venv with the checkout compiled in place, and the tools of tests and lint

clean:  ## remove everything that make made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fibers -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# As PROGRAM=PACKAGE where Debian calls the package otherwise.
SERVERS := openssl nginx redis-server postgres=postgresql mariadbd=mariadb-server sshd=openssh-server rabbitmq-server

# A phony order-only prerequisite: it always looks, and what follows is remade only when sources changed.
packages:
	@.ci/packages $(PYTHON) $(if $(filter test installed soak,$(MAKECMDGOALS)),strace socat curl openssl nginx git) \
		$(if $(filter test installed soak stdlib,$(MAKECMDGOALS)),testsuite) \
		$(if $(filter soak,$(MAKECMDGOALS)),clang) \
		$(if $(filter real suites,$(MAKECMDGOALS)),$(SERVERS))

# The checkout in place. No build isolation: the build tools stay in .venv, a changed C file costs seconds.
$(VENV)/develop.stamp: $(C_SOURCES) | packages
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) install 'setuptools>=77' 'cffi>=1.17' 'greenlet>=3.1'
	$(VENV)/bin/python $(PIP) install --no-build-isolation --editable .
	@touch $@

$(VENV)/lint.stamp: pyproject.toml | $(VENV)/develop.stamp
	$(VENV)/bin/python $(PIP) install --no-build-isolation --editable '.[test,lint]'
	@touch $@

$(VENV)/bench.stamp: pyproject.toml | $(VENV)/develop.stamp
	$(VENV)/bin/python $(PIP) install --no-build-isolation --editable '.[bench]'
	@touch $@

# What a user gets. The build is isolated, so a missing build requirement or a file missing in the sdist shows.
$(TEST_ENV)/tools.stamp: | packages
	test -x $(TEST_ENV)/bin/python || $(PYTHON) -m venv $(TEST_ENV)
	$(TEST_ENV)/bin/python $(PIP) install build
	@touch $@

$(SDIST): $(SDIST_SOURCES) | $(TEST_ENV)/tools.stamp
	rm -rf dist
	$(TEST_ENV)/bin/python -m build --sdist . > build/sdist.log 2>&1 || { cat build/sdist.log; exit 1; }
	@touch $@

$(TEST_ENV)/installed.stamp: $(SDIST) $(TEST_ENV)/tools.stamp
	$(TEST_ENV)/bin/python $(PIP) uninstall -qq -y fibers-io
	$(TEST_ENV)/bin/python $(PIP) install "$$(ls dist/fibers_io-*.tar.gz)[test]"
	@touch $@

$(REAL_ENV)/installed.stamp: $(SDIST) pyproject.toml | packages
	test -x $(REAL_ENV)/bin/python || $(PYTHON) -m venv $(REAL_ENV)
	$(REAL_ENV)/bin/python $(PIP) uninstall -qq -y fibers-io
	$(REAL_ENV)/bin/python $(PIP) install "$$(ls dist/fibers_io-*.tar.gz)[test,real]"
	@touch $@

$(SUITES_ENV)/installed.stamp: $(SDIST) pyproject.toml | packages
	test -x $(SUITES_ENV)/bin/python || $(PYTHON) -m venv $(SUITES_ENV)
	$(SUITES_ENV)/bin/python $(PIP) uninstall -qq -y fibers-io
	$(SUITES_ENV)/bin/python $(PIP) install "$$(ls dist/fibers_io-*.tar.gz)[suites]"
	$(SUITES_ENV)/bin/python $(PIP) install --no-deps httpbin==0.10.4 pytest-httpbin==2.1.0 # they ask for an old greenlet
	@touch $@
