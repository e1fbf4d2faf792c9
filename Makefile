# Everything a bare machine needs is Python 3.11 or newer (with venv), make and git.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OPS = "$(BIN)/ops"
INSTALL = command -v "$(PYTHON)" >/dev/null || { \
	echo "error: there is no $(PYTHON); install Python 3.11 or newer (with venv), or name one: make PYTHON=..." >&2; \
	exit 2; }; "$(PYTHON)" .ci/install.py "$(VENV)"
# Programs of a virtual environment name the folder that it was made in: in a clone that was moved or copied they are
# missing, or those of the other one.
MOVED := $(shell test ! -e "$(VENV)/.installed" || test "$$(cat "$(VENV)/.installed")" = "$$(pwd -P)" || echo moved)
# Most tests wait for processes of their own, so several run at once; those that share a worker stay together.
AT_ONCE = -n 4 --dist loadgroup
# Tests bring their own servers and settings.
CLEAN_ENV = env -u DATABASE_URL -u OPS_DATABASE_OWNER_URL -u OPS_BROKER_URL -u CELERY_BROKER_URL -u REDIS_URL \
	-u ENCRYPTION_KEY -u ENCRYPTION_PASSWORD -u ENCRYPTION_SALT -u OPS_ENCRYPTION_KEYS -u OPS_ENCRYPTION_PRIMARY \
	-u SECRET_KEY -u OPS_AUDIT_SEAL_KEY -u OPS_AUDIT_VERIFY_KEY -u OPS_AUDIT_SEAL_FILE -u OPS_DATA_DIR

.PHONY: help demo up down test test-unit test-schema lint format compose-test reference chaos bench lock env clean

help: ## Show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed ## Deploy for real, break it, watch it recover (KEEP=1 keeps it running)
	@exec $(OPS) demo $(if $(KEEP),--keep)

up: $(VENV)/.installed ## Run the whole platform in this terminal (Ctrl-C stops it)
	@exec $(OPS) up

down: $(VENV)/.installed ## Stop what `ops up --detach` started
	@$(OPS) down

test: $(VENV)/.installed-dev ## Run all tests on servers of their own
	@echo "== tests: everything, in schema public"
	@$(CLEAN_ENV) "$(BIN)/python" -m pytest $(AT_ONCE) $(ARGS)
	@$(MAKE) test-schema

test-unit: $(VENV)/.installed-dev ## Run the tests that need no servers
	@$(CLEAN_ENV) "$(BIN)/python" -m pytest $(AT_ONCE) -m "not e2e and not slow and not servers" $(ARGS)

test-schema: $(VENV)/.installed-dev ## Run the tests in a database that has tables of its own
	@echo "== tests: in schema ops, beside an application's own users and alembic_version"
	@$(CLEAN_ENV) OPS_DATABASE_SCHEMA=ops "$(BIN)/python" -m pytest $(AT_ONCE) -m "not slow" $(ARGS)

lint: $(VENV)/.installed-dev ## Check format, style, types, imports, migrations and known vulnerabilities
	@"$(BIN)/python" .ci/lint.py

format: $(VENV)/.installed-dev ## Format the code
	@"$(BIN)/ruff" format . && "$(BIN)/ruff" check --fix .

compose-test: $(VENV)/.installed-dev ## Kill and stop the compose stack, container by container
	@echo "== tests: in containers"
	@$(CLEAN_ENV) OPS_COMPOSE_TEST=1 "$(BIN)/python" -m pytest tests/smoke tests/compose $(ARGS)

reference: $(VENV)/.installed-dev ## Write docs/reference anew from the code
	@"$(BIN)/python" .ci/reference.py

chaos: $(VENV)/.installed-dev ## Kill things for 5 minutes: alerts must be the truth (CHAOS_SECONDS=300)
	@$(CLEAN_ENV) "$(BIN)/python" -m tests.chaos.monitoring

bench: $(VENV)/.installed-dev ## Measure; prints ratios with PASS or MISS
	@$(CLEAN_ENV) "$(BIN)/python" -m tests.bench $(ARGS)

lock: $(VENV)/.installed-dev ## Resolve the dependencies anew into requirements*.txt
	@"$(BIN)/python" .ci/lock.py

env: $(VENV)/.installed ## Write .env with fresh secrets; overwrites nothing
	@$(OPS) env

clean: ## Remove the virtual environment and caches; data in .ops stays
	@rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.installed: requirements-embedded.txt pyproject.toml $(MOVED)
	@$(INSTALL) requirements-embedded.txt
	@echo "$$(pwd -P)" > "$@"

$(VENV)/.installed-dev: requirements-dev.txt pyproject.toml $(MOVED)
	@$(INSTALL) requirements-dev.txt
	@echo "$$(pwd -P)" > "$@"
	@echo "$$(pwd -P)" > "$(VENV)/.installed"

.PHONY: moved
moved:
