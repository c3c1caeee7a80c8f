.PHONY: demo continuum test lint fuzz docs setup-train setup-eval setup-docs

demo: setup-train setup-eval
	.venv/train/bin/nemo-probsft demo

continuum: setup-train setup-eval
	.venv/train/bin/python -m experiments.continuum $(if $(FULL),--full)

test: setup-train setup-eval
	.venv/train/bin/python -m pytest

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

setup-eval:
	@requirements/venv.sh eval

setup-docs:
	@requirements/venv.sh docs
