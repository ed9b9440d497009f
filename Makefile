# `make demo` runs the main job on real parts; `make test` runs the tests. Everything else is detail.
SHELL := /bin/bash
PY := .venv/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -E")
PATHS := wherry agent server serving cli scripts bench faults tests

.PHONY: help setup assets check test machine demo demo-once demo-stop image-arm64 image-jetson image-server bench bench-swap bench-boot bench-touch faults docs site lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## install what is missing (Debian packages, .venv) and start the engine
	@bash scripts/setup.sh test

assets: ## copy the dashboard's scripts from npm's packages, where the server takes them from
	@bash scripts/assets.sh

check: setup ## formatting, lint, types, layers, generated docs
	.venv/bin/ruff format --check $(PATHS)
	.venv/bin/ruff check $(PATHS)
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) scripts/generate_docs.py --check

test: setup ## all tests, on a real engine, broker, registry and databases
	@$(SUDO) bash scripts/test.sh; status=$$?; \
	[ -z "$(SUDO)" ] || sudo chown -R "$$(id -u):$$(id -g)" build .pytest_cache .hypothesis; exit $$status

machine: setup ## the agent's state machine with EXAMPLES (5000) examples that nobody has seen yet; for long
	WHERRY_MACHINE_EXAMPLES=$(or $(EXAMPLES),5000) $(PY) -m pytest tests/agent/test_agent_machine.py

demo: ## the main job, end to end; leaves everything running
	@bash scripts/setup.sh demo
	@$(SUDO) $(PY) scripts/demo.py

demo-once: ## the main job, end to end; then stop everything
	@bash scripts/setup.sh demo
	@$(SUDO) $(PY) scripts/demo.py --once

demo-stop: ## stop what `make demo` left running
	@$(SUDO) $(PY) scripts/demo.py --stop

image-arm64: setup ## build Dockerfile.arm64 on a base of Debian packages; run `wherry-agent doctor` and one inference in it
	$(SUDO) bash scripts/build_arm64.sh

image-jetson: setup ## build Dockerfile.jetson as far as it goes without NVIDIA's base image and wheel
	$(SUDO) bash scripts/build_jetson.sh

image-server: setup assets ## build Dockerfile.server on a base of Debian packages and start it once
	$(SUDO) bash scripts/build_server.sh

bench: setup ## the figures of bench/, written to build/bench.json
	$(SUDO) $(PY) bench/main.py

bench-swap: setup ## what callers notice of swaps and of a bad release, beside docker, compose and Swarm; build/bench-swap.json
	$(SUDO) $(PY) bench/swap.py $(if $(SWAPS),--swaps $(SWAPS))

bench-boot: setup ## seconds from engine up to the first answer after a power cut without a network; build/bench-boot.json
	$(SUDO) $(PY) bench/boot.py

bench-touch: setup ## what people wait for: first rollout, pages, packaging, containers; build/bench-touch.json
	$(PY) scripts/fetch_models.py magika-1.0.3
	$(SUDO) $(PY) bench/touch.py

faults: setup ## every row of the fault catalogue against real daemons; an hour or two; goes on where it was; build/faults.json
	$(SUDO) $(PY) -m faults

docs: setup ## write the generated parts of the docs again
	$(PY) scripts/generate_docs.py

# Both of mkdocs' camps print an advertisement for what comes after it; the versions are pinned.
site: setup ## build the documentation into build/site; a broken link fails it
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true .venv/bin/mkdocs build --quiet
	@echo "build/site/index.html"

lock: ## write requirements/*.txt again from pyproject.toml
	bash scripts/lock.sh

clean: ## remove build/ and caches
	$(SUDO) rm -rf build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
