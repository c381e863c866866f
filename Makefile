# One command on a fresh machine: `make test` sets up everything and runs the tests.
# Debian needs python3-venv (apt install python3-venv); another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup test lint soak moments fuzz quickstart accelerators lmms-eval

setup: $(VENV)/ready

# Python compiles what is imported when it is imported; to compile all that is installed takes half a minute more.
INSTALL := pip install --quiet --no-compile

$(VENV)/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) --editable ".[dev]"
	touch $@

# An older transformers beside the installed one: what we write must load in both.
.transformers4/ready: $(VENV)/ready
	$(BIN)/$(INSTALL) --no-deps --upgrade --target .transformers4 \
		transformers==4.57.1 tokenizers==0.22.1 huggingface-hub==0.36.0 requests urllib3 idna charset-normalizer certifi
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers=2

# The checks of the source run beside the installation. Large pages save a part of the time on Linux.
test: setup
	$(MAKE) --jobs=2 lint .transformers4/ready
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

# The whole story on real images: set up, train, evaluate, draw. Results are in quickstart/.
.venv-quickstart/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv-quickstart
	.venv-quickstart/bin/$(INSTALL) --editable ".[quickstart]"
	touch $@

quickstart: .venv-quickstart/ready
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv-quickstart/bin/python -m examples.quickstart --out=quickstart

# Kills a run at twenty random moments and compares its end with an undisturbed one: some minutes.
soak: setup
	$(BIN)/python tests/soak.py

# Signals at random moments to every command that writes, and whether it ends and goes on as it should: half an hour.
moments: setup
	PYTHONPATH=tests:. $(BIN)/python tests/moments.py

# Hostile and careless input, new each time: what was tried, and what got through. SURFACE and SEED show a finding again.
MINUTES ?= 30
fuzz: setup
	PYTHONPATH=tests:. $(BIN)/python -m fuzz --minutes=$(MINUTES) $(SURFACE:%=--surface=%) $(SEED:%=--seed=%)

# The programs that XLA makes for GPUs and TPUs, compiled without either: two environments of some GB, then minutes.
.venv-cuda/ready .venv-tpu/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/$(INSTALL) --editable ".[$(patsubst .venv-%/,%,$(@D)/)]" pytest
	touch $@

accelerators: .venv-cuda/ready .venv-tpu/ready
	.venv-cuda/bin/python -m pytest tests/accelerators tests/analysis/test_topology.py
	.venv-tpu/bin/python -m pytest tests/accelerators tests/analysis/test_topology.py tests/analysis/test_plan_command.py

# lmms-eval as users install it (3 GB), and whether it gives the answers of eval.py. It cannot load filelock 4, and keeps
# protobuf below what sentencepiece 0.2.3 wants. Its torchvision needs torch's CUDA build; no task of images needs it.
.venv-lmms-eval/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/$(INSTALL) --editable . lmms-eval==0.7.3 torch==2.13.0 "filelock<4" "sentencepiece<0.2.3"
	$(@D)/bin/pip uninstall --quiet --yes torchvision
	touch $@

lmms-eval: .venv-lmms-eval/ready
	PYTHONPATH=tests:. JAX_PLATFORMS=cpu .venv-lmms-eval/bin/python tests/lmms_eval_agreement.py
