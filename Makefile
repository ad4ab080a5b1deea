# make demo: adapt a frozen ViT to real pictures and look at the result. make test: everything CI runs; make test-all: the
# slow part too.
# Both set up .venv first (uv where it is installed, else venv and pip); from then on they start at once.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: setup demo test test-all lint clean

setup: $(READY)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found: name one with make PYTHON=/path/to/python."; exit 1; }
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
		uv pip install --quiet --python $(BIN)/python -e ".[dev]"; \
	else \
		"$(PYTHON)" -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"; \
	fi
	@touch $@

demo: $(READY)
	@for method in linear bitfit ssf vpt adaptformer lora; do \
		$(BIN)/vision_peft fit --method $$method --data digits --out demo/$$method --trainer.max_epochs 5 || exit 1; done
	@$(BIN)/vision_peft compare demo --out demo
	@$(BIN)/python -m peft_data.digits demo/pictures
	@$(BIN)/vision_peft predict --run demo/lora demo/pictures
	@echo; echo "source $(BIN)/activate      # brings vision_peft, clip_peft and diffusion_peft into your shell"

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf demo .pytest_cache .ruff_cache
