# The commands of a developer's day. `make` alone lists them.
# PROFILE=ci builds the extension without link-time optimisation: quicker to build, slower to run.

PROFILE ?= release
# Test files that run at the same time; most of them wait more than they compute.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(HOME)/.cargo/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CARGO_TERM_COLOR ?= auto

# The first interpreter that is new enough; the name alone says too little where pyenv is in use.
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$each"; break; }; done)
RUST_SOURCES := $(shell find rust -type f \( -name '*.rs' -o -name Cargo.toml \) 2>/dev/null)
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -n")
APT := $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get -qq

.DEFAULT_GOAL := help
.PHONY: help build demo load lint lint-rust lint-python test test-rust test-python bench campaign
.PHONY: test-instructions instructions-baseline
.PHONY: campaign-sim campaign-engine campaign-uring campaign-epoll
.PHONY: wheel docs lock clean
.PHONY: need-rust need-python need-servers need-drivers need-valgrind
.DELETE_ON_ERROR:
.NOTPARALLEL:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PROFILE=ci (now: $(PROFILE)) builds quicker and runs slower."

build: $(BIN)/.built-$(PROFILE) ## make .venv, build the extension, install the pyproxy command

demo: $(BIN)/.built-$(PROFILE) ## a database, the proxy and a storm of clients here; DEMO_ARGS=--once ends by itself
	@$(BIN)/pyproxy demo $(DEMO_ARGS)

load: $(BIN)/.built-$(PROFILE) ## a storm of clients by Locust, through the proxy and directly; TARGET=proxy|direct|both
	$(BIN)/python -m loadtests.run --target $(or $(TARGET),both) $(LOAD_ARGS)

lint: lint-rust lint-python ## formatting, clippy, licences, ruff, mypy, stubs, import contracts

lint-rust: | need-rust
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --offline check bans licenses sources; \
	else \
		echo "lint: cargo-deny is not installed: left out (tests/test_tidy.py checks the sources)"; \
	fi

lint-python: $(BIN)/.built-$(PROFILE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest pyproxy._core --concise
	$(BIN)/lint-imports --no-cache

test: test-rust test-instructions test-python ## all tests; installs PostgreSQL and PgBouncer where they are missing

# The number is io_uring_setup's; called so, it fails otherwise where it is allowed.
WITHOUT_IO_URING = $(shell $(PYTHON) -c 'import ctypes, errno; \
	libc = ctypes.CDLL(None, use_errno=True); libc.syscall(425, 0, 0); \
	print("uring both_drivers" if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS) else "")')

test-rust: | need-rust
	@[ -z "$(WITHOUT_IO_URING)" ] \
		|| echo "test: io_uring cannot be had here: the tests of its driver are left out"
	cargo test --workspace --locked --quiet --features sim/broken -- $(addprefix --skip ,$(WITHOUT_IO_URING))

# Counted in one profile whatever PROFILE is: counts of two profiles cannot be compared.
COUNT = cargo build --quiet --locked --profile ci --package bench && \
	$(PYTHON) bench/instructions.py "$${CARGO_TARGET_DIR:-target}/ci/bench"

test-instructions: | need-rust need-python need-valgrind
	@$(COUNT)

instructions-baseline: | need-rust need-python need-valgrind
	@$(COUNT) --write

# What `io = "auto"` takes on this machine; the tests run with that, and some with the other one.
AUTO_IO = $(shell $(BIN)/python -c 'from pyproxy import _core; \
	print("epoll" if _core.io_uring_missing() else "io_uring")')
ONLY_EPOLL = echo "$@: io_uring cannot be had here: nothing runs with it"

define WITH_THE_OTHER_DRIVER
@[ "$(AUTO_IO)" = io_uring ] || { $(ONLY_EPOLL); exit 0; }; \
	echo "$@: a tenth again, with epoll"; \
	PROFILE=$(PROFILE) $(BIN)/pytest -n $(JOBS) --dist loadfile --io epoll --part 10 \
		tests/process tests/postgres
endef

test-python: $(BIN)/.built-$(PROFILE) | need-servers need-drivers
	PROFILE=$(PROFILE) $(BIN)/pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,$(WITH_THE_OTHER_DRIVER))

bench: $(BIN)/.built-$(PROFILE) | need-servers ## side by side against the peers found on this machine
	$(BIN)/python bench/run.py $(BENCH_ARGS)
	$(BIN)/python bench/workers.py $(WORKERS_ARGS)

# Each part can be run alone, and `make -k campaign` goes on behind one that fails. Real servers get
# one test at a time: most of these tests load the machine by themselves.
campaign: campaign-sim campaign-engine campaign-uring campaign-epoll ## the random tests in full, with both drivers: hours
	@echo "$@: all parts are through"

campaign-sim: | need-rust
	@echo "$@: the simulator, sixteen times the usual seeds"
	SIM_SEEDS=$${SIM_SEEDS:-4096} cargo test --locked --profile ci --package sim --test campaign

campaign-engine: $(BIN)/.built-$(PROFILE) | need-rust
	@[ "$(AUTO_IO)" = io_uring ] || { $(ONLY_EPOLL); exit 0; }; \
	echo "$@: both drivers against each other, 32 times the usual seeds"; \
	ENGINE_SEEDS=$${ENGINE_SEEDS:-1024} cargo test --locked --package engine --lib tests_both

CAMPAIGN = PYPROXY_SCALE=$${PYPROXY_SCALE:-1} $(BIN)/pytest --timeout 1800 tests/process tests/postgres

campaign-uring: $(BIN)/.built-$(PROFILE) | need-servers
	@[ "$(AUTO_IO)" = io_uring ] || { $(ONLY_EPOLL); exit 0; }; \
	echo "$@: real servers, ten times the usual load, with io_uring"; \
	$(CAMPAIGN) --io io_uring $(PYTEST_ARGS)

campaign-epoll: $(BIN)/.built-$(PROFILE) | need-servers
	@echo "$@: real servers, ten times the usual load, with epoll"
	$(CAMPAIGN) --io epoll $(PYTEST_ARGS)

wheel: $(BIN)/.installed | need-rust ## a wheel for this platform and every CPython from 3.11 on, in dist/
	$(BIN)/maturin build --quiet --locked --profile $(PROFILE) --out dist

docs: $(BIN)/.built-$(PROFILE) ## write docs/configuration.md anew from the settings' table
	$(BIN)/python -m pyproxy.config.reference > docs/configuration.md

lock: | need-python ## pin the newest Python packages anew
	tools=$$(mktemp -d) && $(PYTHON) -m venv "$$tools" && \
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"] \
		["dependencies"], sep="\n")' > "$$tools/run.in" && \
	"$$tools/bin/pip" install -q -r "$$tools/run.in" -r requirements-dev.in && \
	{ echo "# Pinned by \`make lock\` from pyproject.toml and requirements-dev.in."; \
		"$$tools/bin/pip" freeze; } > requirements-dev.lock && \
	rm -r "$$tools"

clean: ## remove everything that was built
	rm -rf $(VENV) dist target .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	rm -f pyproxy/_core*.so

# Stamps, so that a second run does only what has changed.

$(BIN)/.installed: requirements-dev.lock | need-python
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(APT) update && $(APT) install -y python3-venv; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install -q -r requirements-dev.lock
	@touch $@

$(BIN)/.built-$(PROFILE): $(BIN)/.installed $(RUST_SOURCES) Cargo.toml Cargo.lock pyproject.toml \
		| need-rust
	@rm -f $(BIN)/.built-*
	$(BIN)/maturin develop --quiet --locked --profile $(PROFILE)
	@touch $@

# What a machine must have.

need-python:
	@[ -n "$(PYTHON)" ] || { echo "make: needs CPython 3.11 or newer; on Debian 12 or Ubuntu 24.04:" \
		"apt install python3 python3-venv; elsewhere: https://www.python.org/downloads/"; exit 1; }

need-rust:
	@command -v cargo >/dev/null || { echo "make: needs a Rust toolchain, 1.85 or newer:" \
		"curl --proto '=https' -sSf https://sh.rustup.rs | sh"; exit 1; }
	@rustc --version | awk '{ split($$2, v, "."); exit !(v[1] > 1 || v[2] >= 85) }' || { \
		echo "make: $$(rustc --version) is too old, 1.85 or newer is needed: rustup update stable" \
		"(or see https://rustup.rs; the distribution's package may stay behind)"; exit 1; }
	@command -v cc >/dev/null || { $(APT) update && $(APT) install -y gcc libc6-dev; } || { \
		echo "make: needs a C linker: apt install gcc libc6-dev"; exit 1; }

need-servers:
	@{ [ -d /usr/lib/postgresql ] && [ -x /usr/sbin/pgbouncer ]; } \
		|| { $(APT) update && $(APT) install -y postgresql pgbouncer; } || { \
		echo "make: the tests need database servers: apt install postgresql pgbouncer"; exit 1; }

# Without it nothing is counted, and `bench/instructions.py` says so.
need-valgrind:
	@command -v valgrind >/dev/null || { $(APT) update && $(APT) install -y valgrind; } || true

# Languages of the driver matrix: what is missing comes from the distribution.
need-drivers:
	@missing=""; \
	command -v go >/dev/null || missing="$$missing golang-go"; \
	command -v npm >/dev/null || missing="$$missing nodejs npm"; \
	command -v javac >/dev/null || missing="$$missing default-jdk-headless"; \
	command -v mvn >/dev/null || missing="$$missing maven"; \
	[ -z "$$missing" ] || { $(APT) update && $(APT) install -y $$missing; } || { \
		echo "make: the driver matrix needs Go, Node.js, Java and Maven: apt install$$missing"; exit 1; }
