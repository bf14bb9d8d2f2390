# Two commands for a new user: `make quickstart` and `make test`. Both set up everything that is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is built for browsers is built of these.
FRONT_ENDS := $(shell find labextension -type f -not -path "*/node_modules/*" -not -path "*/lib/*" -not -path "*/built/*" -not -path "*/tests/*")

.PHONY: help quickstart test setup packages lint docs unit vm nested image clean

help:  ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

quickstart: setup  ## Set up everything, then run notebooks/quickstart.ipynb in a VM.
	@$(BIN)/agentvm doctor
	@$(BIN)/agentvm quickstart notebooks/quickstart.ipynb

# The browser that the tests look at outputs with, the server that asks for metrics, and what libvirt's networks and their
# filters are made of.
test: export AGENTVM_TEST_PACKAGES := chromium curl fonts-dejavu-core openssh-client prometheus dnsmasq-base iptables nftables \
	libvirt-daemon-driver-network libvirt-daemon-driver-nwfilter libvirt-daemon-config-nwfilter

# What holds descriptions of reports against their profiles wants an older rich than the tests.
CRATE := $(VENV)/crate
test unit: export AGENTVM_CRATE_VALIDATOR := $(abspath $(CRATE))/bin/python
test unit: $(CRATE)/.installed

$(CRATE)/.installed: $(VENV)/.installed | setup
	@echo "Installing roc-validator into $(CRATE) …"
	@$(BIN)/python -m venv $(CRATE)
	@$(CRATE)/bin/python -m pip install --quiet roc-validator==0.13.0
	@touch $@

test: setup  ## Set up everything, then run every check and test that this machine can run.
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory image
	@$(BIN)/coverage erase
	@status=0; \
	$(BIN)/python -m pytest tests/unit --numprocesses=2 --dist=loadfile --cov --cov-report= || status=1; \
	$(BIN)/python -m pytest --ignore=tests/unit -m "not alone" --numprocesses=2 --dist=loadfile --durations=40 \
		--cov --cov-append --cov-report= || status=1; \
	$(BIN)/python -m pytest --ignore=tests/unit -m alone --durations=10 --cov --cov-append \
		--cov-report=term:skip-covered --cov-fail-under=85 || status=1; \
	exit $$status

setup: packages $(VENV)/.installed

packages:
	@sh agentvm_kernel/host/packages.sh

$(VENV)/.installed: pyproject.toml hatch_build.py $(wildcard kernelspec/*) $(FRONT_ENDS)
	@echo "Installing the Python packages into $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

lint: setup  ## Style, types, security, and that the documents can be built.
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/bandit --quiet --recursive --configfile pyproject.toml agentvm_kernel guest
	@$(BIN)/mkdocs build --strict

docs: setup  ## Build the documents into build/docs.
	@$(BIN)/mkdocs build --strict
	@echo "Open build/docs/index.html"

image: setup
	@$(BIN)/agentvm image build minimal
	@$(BIN)/agentvm image build standard

unit: setup  ## Tests that need no VM.
	@$(BIN)/python -m pytest tests/unit

vm: setup image  ## Tests in real VMs.
	@$(BIN)/python -m pytest tests/vm

nested: setup  ## Real vhost-vsock, here or one level down.
	@$(BIN)/python -m pytest tests/nested

clean:  ## Remove what was installed and built in this folder.
	rm -rf $(VENV) agentvm_kernel/widgets/static labextension/*/node_modules labextension/*/ui-tests/node_modules labextension/*/lib labextension/*/built build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
