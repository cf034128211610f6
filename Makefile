# `make repro` on a fresh machine needs make, git, bash and Python 3.11 to 3.14, nothing else:
# every other tool comes from requirements.lock into .venv.

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/requirements.lock

# The first that is recent enough and can make environments; `make PYTHON=... repro` overrides it.
PYTHON = $(shell for name in python3.13 python3.12 python3.11 python3.14 python3; do \
	"$$name" -c 'import ensurepip, os, sys; (3, 11) <= sys.version_info < (3, 15) or sys.exit(1); \
	print(os.path.realpath(sys.executable))' 2>/dev/null && break; done)

# Stages and tests start `python` and `dvc` by name.
WITH_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
unexport VIRTUAL_ENV PYTHONHOME
# Without bytecode, torch and hear-eval-kit take 10 s longer to import in every stage.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help doctor repro test format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s%s\n", $$1, $$2}' Makefile

doctor: $(INSTALLED) ## check this machine, and estimate the disk space and time of a run
	$(WITH_VENV) python -m pipeline.commands.doctor

repro: $(INSTALLED) ## run the pipeline; only what changed runs again
	$(WITH_VENV) dvc repro
	@echo "Scores, curves and plots: file://$(CURDIR)/reports/index.html"

test: $(INSTALLED) ## check format, style, types and imports, then run the tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy pipeline stages
	$(BIN)/lint-imports --no-logo
	$(WITH_VENV) pytest -n 2 --dist loadfile --no-loadscope-reorder

format: $(INSTALLED) ## format the code and apply the fixes of the linter
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: $(INSTALLED) ## rewrite requirements.lock from pyproject.toml (newest versions: make lock UPGRADE=1)
	$(BIN)/uv pip compile pyproject.toml --extra test --universal --fork-strategy fewest \
		--no-annotate --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) \
		--quiet --output-file requirements.lock

clean: ## remove the environment and the tools' caches; data and results stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find pipeline stages tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment keeps a copy of the list it was made from, written when everything is installed.
# uv takes a minute where pip takes three, so it is installed first; without it, pip installs all.
# An active $(VENV) must not supply the tools: it is removed here.
$(INSTALLED): requirements.lock
	@set -e; \
	if cmp -s $< $@; then touch $@; exit; fi; \
	PATH=$${PATH//"$(CURDIR)/$(BIN):"/}; \
	python="$(PYTHON)"; \
	uv=$$(uv --version 2>/dev/null || true); \
	if [ -z "$$python$$uv" ]; then \
		echo "No Python from 3.11 to 3.14 with its venv module found on the PATH." \
			"Install one (Debian, Ubuntu: apt install python3 python3-venv)" \
			"or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	echo "Installing the packages of requirements.lock into $(VENV) (one to three minutes, 6 GB)"; \
	rm -rf $(VENV); \
	if [ -n "$$uv" ]; then \
		uv venv --quiet --python "$${python:->=3.11,<3.15}" $(VENV); \
		uv pip install --quiet --python $(BIN)/python --no-deps -r $<; \
	else \
		pip="$(BIN)/python -m pip install --quiet --no-deps --no-compile --ignore-requires-python"; \
		"$$python" -m venv $(VENV); \
		{ $$pip $$(grep -E '^(pip|uv)==' $<) && \
			$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r $<; } || \
			{ echo "uv failed; trying pip"; $$pip -r $<; }; \
	fi; \
	cp $< $@
