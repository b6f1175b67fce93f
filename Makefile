# `make demo`, `make test` and `make lint` need Python 3.11 to 3.13 and a package index, nothing else.
# Each makes its own virtual environment and may be repeated; `make demo PYTHON=... VENV=...` overrides.
VENV ?= .venv
PYTHON ?= python3.13 python3.12 python3.11 python3
TORCH ?= torch==2.13.0
EXTRAS ?= dev,serve# of pyproject.toml; with `dev,serve,ray` the tests of Ray run too

# On Linux the default build of PyTorch carries gigabytes of CUDA. Without an NVIDIA GPU pip is shown
# PyTorch's own index as well, where it prefers the CPU build; where that index cannot be reached, pip
# goes on with the default one. `make demo TORCH_INDEX=` leaves the choice to pip.
ifeq ($(shell uname -s; command -v nvidia-smi || true),Linux)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif

DEMO_PROMPT = a large red circle bouncing around slowly on a gray background

.DELETE_ON_ERROR:
.PHONY: demo test lint format clean

demo: $(VENV)/installed-for-use
	$(VENV)/bin/longtake generate "$(DEMO_PROMPT)" --seconds 60 --set guidance=2 --out demo.mp4 --force

test: $(VENV)/installed-for-work
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist worksteal

lint: $(VENV)/installed-for-work
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy -p longtake

format: $(VENV)/installed-for-work
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:
	rm -rf $(VENV) build dist src/*.egg-info

$(VENV)/installed-for-use: EXTRA =
$(VENV)/installed-for-work: EXTRA = [$(EXTRAS)]
$(VENV)/installed-for-%: pyproject.toml | $(VENV)/bin/pip
	$(VENV)/bin/pip install --no-deps --retries 1 --timeout 15 $(TORCH_INDEX:%=--extra-index-url %) "$(TORCH)"
	$(VENV)/bin/pip install --editable ".$(EXTRA)"
	@touch $@

# A name on the path may be a shim without a Python behind it, so every candidate has to run.
$(VENV)/bin/pip:
	@for python in $(PYTHON); do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	      2>/dev/null; then exec $$python -m venv --clear "$(VENV)"; fi; \
	done; \
	echo "Longtake needs Python 3.11, 3.12 or 3.13 with its venv module; tried: $(PYTHON)" >&2; exit 1
