.PHONY: demo continuum real-model real-continuum test test-fast lint fuzz docs setup-train setup-bridge setup-eval setup-docs

# Half of a test's time is the start of a process, on one core: two workers share two cores well.
WORKERS ?= 2
PYTEST = .venv/train/bin/python -m pytest --numprocesses=$(WORKERS) --no-loadscope-reorder

demo: setup-train setup-eval
	.venv/train/bin/nemo-probsft demo

continuum: setup-train setup-eval
	.venv/train/bin/python -m experiments.continuum $(if $(FULL),--full)

# A pretrained model of 135 M parameters, into runs/real: the tests marked `real` run where it is.
real-model: setup-train
	.venv/train/bin/python -m experiments.real.model

# SETS=DIR: where math_oai.jsonl and humaneval.jsonl lie; without it they come from the hub.
real-continuum: setup-train real-model
	.venv/train/bin/python -m experiments.real data $(if $(SETS),--sets $(SETS))
	.venv/train/bin/python -m experiments.real diagnose
	.venv/train/bin/python -m experiments.real run
	.venv/train/bin/python -m experiments.real page

# Without a Python 3.12 the tests of Megatron-Bridge are left out, and pytest's last lines count them; CI fails.
test: setup-train setup-eval
	@requirements/venv.sh bridge --optional
	$(PYTEST)

test-fast: setup-train
	$(PYTEST) tests/unit

lint: setup-train
	.venv/train/bin/ruff check .
	.venv/train/bin/ruff format --check .
	.venv/train/bin/mypy

fuzz: setup-train
	.venv/train/bin/python -m tests.support.fuzz 10000

docs: setup-docs
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict --quiet

setup-train:
	@requirements/venv.sh train

setup-bridge:
	@requirements/venv.sh bridge

setup-eval:
	@requirements/venv.sh eval

setup-docs:
	@requirements/venv.sh docs
