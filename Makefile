# What a user, a developer and CI type; `make` alone lists the targets.
# PYTHON is the Python that makes .venv; PYTEST_ARGS is added to every pytest call.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3.11 python3; do $$python -c 'import venv' 2>/dev/null && echo $$python && break; done)
CPP = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
FORMATTED = $(CPP) $(wildcard examples/cpp/*.cpp tests/support/host_cuda/*.c* tests/support/host_cuda/*.h tests/support/standin/*.c)
OLD_TRITON := build/triton-3.6.0
# Of `make fuzz`: how many convolutions are drawn.
COUNT ?= 20000
# What is drawn in `make fuzz`, and in `make gates` which tenth of all launches the stand-in driver takes; both print it,
# so that a failure can be repeated.
SEED ?= $(shell date +%s)
# Over the processors, four at the most since each holds a torch; PYTEST_ARGS="-n 0" runs the tests one by one.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
# A name for the tree as it is: whatever the gates read is in it.
TREE := $(shell find csrc pyops triton_kernels tests bench examples $(wildcard *.py *.toml *.txt *.in *.md LICENSE Makefile) \
	-type f ! -name '*.so' ! -path '*/__pycache__/*' | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16)

.DEFAULT_GOAL := help
# What a bundle is for; GPU_PYTHON names a Python that has that torch and triton, else pip makes one. STEPS: a bundle with
# the kernels of these steps alone, to try one out: make gpu-bundle STEPS="passes,every kernel once".
ARCH ?= 9.0a
PY ?= 3.12
TORCH ?= 2.11.0
TRITON ?= 3.6.0
BUNDLE = --arch $(ARCH) --python $(PY) --torch $(TORCH) --triton $(TRITON) $(if $(GPU_PYTHON),--interpreter $(GPU_PYTHON)) \
	$(if $(STEPS),--steps "$(STEPS)")

.PHONY: help setup demo cpp-example test gates standin-all fuzz gpu-bundle gpu-bundle-download gpu-bundle-check bench bench-report \
	kernel-table lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# Each step leaves a file that is newer than what it was made from, so a repeated run costs nothing.
$(VENV)/packages: requirements-dev.txt requirements-cuda.txt
	@test -n "$(PYTHON)" || { echo "no Python with venv found: install python3.11 and python3.11-venv, or set PYTHON"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-cuda.txt
	@touch $@

$(VENV)/package: $(VENV)/packages pyproject.toml setup.py
	ATROUS_SKIP_NATIVE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/native: $(VENV)/package $(CPP) csrc/sources.txt csrc/flags.txt pyops/schemas.def triton_kernels/gpus.def
	@mkdir -p build && echo "building csrc (about a minute; build/native.log)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py build_ext --inplace > build/native.log 2>&1 \
		|| { grep -E "^atrous: |error" build/native.log || tail -20 build/native.log; exit 1; }
	@touch $@

setup: $(VENV)/native  ## make .venv with everything in it, the package editable and csrc built

demo: setup  ## ResNet34 and its fused twin side by side: out/demo.json, out/demo.png
	@mkdir -p out
	$(BIN)/python -m atrous demo --json out/demo.json --plot out/demo.png

cpp-example: setup  ## a ResNet34 classifies a photograph from C++, without Python: export, CMake, both outputs side by side
	@MAKEFLAGS=--no-print-directory $(BIN)/python examples/cpp/compare.py --folder out/cpp

test: setup  ## what a user runs
	$(BIN)/python -m pytest $(PARALLEL) -m "not gpu and not gate" $(PYTEST_ARGS)

gates: setup build/gates-$(TREE)  ## what takes longer: compile gates, wheels, CMake, a second triton; once for each state of the tree

build/gates-$(TREE): | $(VENV)/native $(OLD_TRITON)/complete
	@echo "stand-in driver: the tenth of SEED=$(SEED)"
	STANDIN_SEED=$(SEED) $(BIN)/python -m pytest $(PARALLEL) -m "gate and not gpu" $(PYTEST_ARGS)
	PYTHONPATH=$(OLD_TRITON) $(BIN)/python -c 'import triton; assert triton.__version__ == "3.6.0", triton.__version__'
	PYTHONPATH=$(OLD_TRITON) $(BIN)/python -m pytest $(PARALLEL) -m "not gpu and not gate" \
		$(wildcard tests/triton/test_triton_*.py) $(PYTEST_ARGS)
	PYTHONPATH=$(OLD_TRITON) STANDIN_SEED=$(SEED) $(BIN)/python -m pytest $(PARALLEL) -m gate tests/triton/test_triton_standin.py \
		$(PYTEST_ARGS)
	@touch $@

standin-all: setup $(OLD_TRITON)/complete  ## every launcher in every config on three chips, under the stand-in driver and both tritons
	$(BIN)/python -m pytest $(PARALLEL) -m gate --whole tests/triton/test_triton_standin.py $(PYTEST_ARGS)
	PYTHONPATH=$(OLD_TRITON) $(BIN)/python -m pytest $(PARALLEL) -m gate --whole tests/triton/test_triton_standin.py $(PYTEST_ARGS)

# The oldest triton that we hold for, in a folder of its own that comes before .venv's; its interpreter needs numpy < 2.4.
$(OLD_TRITON)/complete: $(VENV)/packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OLD_TRITON) \
		triton==3.6.0 numpy==2.3.5
	@touch $@

fuzz: setup  ## COUNT=20000 drawn convolutions of every backend that a CPU runs, SEED; results in out/fuzz.json
	@mkdir -p out
	TRITON_INTERPRET=1 $(BIN)/python tests/fuzz/fuzz_conv.py --seed $(SEED) --count $(COUNT) --json out/fuzz.json
	$(BIN)/python tests/fuzz/fuzz_conv.py --backend emulation --seed $(SEED) --count $$(($(COUNT) / 10))

gpu-bundle:  ## wheel and compiled kernels for a GPU machine, built without one: out/gpu-bundle-*.tar.xz; ARCH, PY, TORCH, TRITON
	$(PYTHON) -m bench.gpu.bundle.command build $(BUNDLE)

gpu-bundle-download:  ## what gpu-bundle fetches, before it: torch, Triton and CUTLASS
	$(PYTHON) -m bench.gpu.bundle.command download $(BUNDLE)

gpu-bundle-check:  ## install it into a fresh Python: it loads, and right and fast compile nothing
	$(PYTHON) -m bench.gpu.bundle.command check $(BUNDLE)

bench: setup  ## pytest-benchmark over bench/, correctness first; JSON in out/bench.json
	@mkdir -p out
	$(BIN)/python -m pytest bench -m "not gpu" --benchmark-only --benchmark-json out/bench.json $(PYTEST_ARGS)

bench-report:  ## write README's tables from bench/results
	$(BIN)/python -m bench.report.report

kernel-table: setup  ## write the tables of kernels from the compile gates: README's of Triton, docs' of CUDA C++ (needs nvcc)
	$(BIN)/python tests/support/gates/conv_gate.py README.md
	$(BIN)/python tests/support/gates/cuda_table.py docs/cuda-kernels.md

lint: setup  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format:  ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean:  ## remove what was built; .venv stays
	rm -rf build dist out *.egg-info pyops/*.so $(VENV)/native
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print | xargs rm -rf
