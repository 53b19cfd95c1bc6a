# Two commands: `make demo` and `make test`. Each makes .venv, installs the package into it, and runs. `make docs` builds
# the documentation into out/docs; `make verify` proves the compiled kernels constant-time.
#
#   PYTHON=python3.13   the interpreter .venv is made from (3.11 or newer)
#   JAX=0.9.2           a release of jax to install instead of the newest
#   DHP_CUDA=1 or 0     build the CUDA kernels or not; default: where an NVIDIA driver is found

PYTHON ?= python3
VENV ?= .venv
JAX ?=
DEMO_FLAGS ?=

BIN := $(VENV)/bin
comma := ,
EXTRAS := test,examples,docs$(if $(wildcard /proc/driver/nvidia/version),$(comma)cuda13)
SOURCES := pyproject.toml CMakeLists.txt $(shell find build_backend cuda dhp_jax -type f -not -path '*/__pycache__/*')
CPP_SOURCES := $(shell find benchmarks cuda tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')
PY_SOURCES := benchmarks build_backend dhp_jax docs examples tests

.PHONY: demo test test-gpu sanitize verify docs lint types format wheel clean

demo: $(VENV)/installed
	$(BIN)/python examples/flax_transformer.py $(DEMO_FLAGS)

test: lint types
	$(BIN)/python -m pytest -n auto --dist worksteal

test-gpu: $(VENV)/installed
	$(BIN)/python -m pytest -m gpu

# Needs compute-sanitizer of the CUDA toolkit on the PATH. initcheck.xml says what initcheck takes wrong.
sanitize: export XLA_PYTHON_CLIENT_PREALLOCATE = false
sanitize: $(VENV)/installed
	for tool in memcheck racecheck synccheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -P tests/gpu_calls.py || exit 1; \
	done
	compute-sanitizer --tool initcheck --suppressions dhp_jax/validate/initcheck.xml --error-exitcode 1 \
	  $(BIN)/python -P tests/gpu_calls.py --but-outputs

# -P: the installed package, not the folder's. Both proofs run; the first verdict that is not SAFE fails the target.
verify: $(VENV)/installed
	$(BIN)/python -P -m dhp_jax.verify --keep build/verdicts
	$(BIN)/python -P -m dhp_jax.verify --host

docs: $(VENV)/installed
	$(BIN)/python -P -m sphinx -q -W --keep-going docs out/docs

lint: $(VENV)/installed
	$(BIN)/ruff check $(PY_SOURCES)
	$(BIN)/ruff format --check $(PY_SOURCES)
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix $(PY_SOURCES)
	$(BIN)/ruff format $(PY_SOURCES)
	$(BIN)/clang-format -i $(CPP_SOURCES)

wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

# The package is installed editable: Python changes count at once, a change of native sources builds again.
$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[$(EXTRAS)]" $(if $(JAX),jax==$(JAX) jaxlib==$(JAX))
	touch $@

clean:
	rm -rf build dist out .venv .venv-*
