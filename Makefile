# Targets for users, developers and CI; `make` alone lists them.
# PYTHON is the Python that creates .venv; PYTEST_ARGS is added to every pytest call.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3.11 python3; do $$python -c 'import venv' 2>/dev/null && echo $$python && break; done)
CPP = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
FORMATTED = $(CPP) $(wildcard examples/cpp/*.cpp tests/support/host_cuda/*.c* tests/support/host_cuda/*.h tests/support/standin/*.c \
	tests/support/sanitize/*.cpp)
OLD_TRITON := build/triton-3.6.0
PUBLIC := build/public-models
# Number of cases that `make fuzz` draws: one in 20 is a fused model. A tenth as many run over the emulation of csrc/cuda.
COUNT ?= 20000
# Number of calls of each kind that `make sanitize-all` draws.
CALLS ?= 1000
# Random seed of `make fuzz`, and of what `make gates` draws: a tenth of all launches under the stand-in driver, and of
# tests with the marker `drawn` the part that it names. Both print it, so that a failure can be reproduced.
SEED ?= $(shell date +%s)
SEED := $(SEED)
# One worker per core, four at most since each imports torch; PYTEST_ARGS="-n 0" runs the tests in one process.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
# Hash of all files that the gates read.
TREE := $(shell find csrc pyops triton_kernels tests bench examples $(wildcard *.py *.toml *.txt *.in *.md LICENSE Makefile) \
	-type f ! -name '*.so' ! -path '*/__pycache__/*' | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16)

.DEFAULT_GOAL := help
# Target of a bundle; GPU_PYTHON names a Python with that torch and triton, else pip creates one. STEPS: include the
# kernels of these steps alone, to try one out: make gpu-bundle STEPS="passes,every kernel once".
ARCH ?= 9.0a
PY ?= 3.12
TORCH ?= 2.11.0
TRITON ?= 3.6.0
BUNDLE = --arch $(ARCH) --python $(PY) --torch $(TORCH) --triton $(TRITON) $(if $(GPU_PYTHON),--interpreter $(GPU_PYTHON)) \
	$(if $(STEPS),--steps "$(STEPS)")

.PHONY: help setup demo cpp-example test gates gates-all standin-all fuzz sanitize-all opinfo-all fusion-all gpu-bundle \
	gpu-bundle-download gpu-bundle-check bench bench-full bench-results peers bench-compare bench-host public-models \
	versions reliability bench-report docs kernel-table experiment lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# Each step leaves a file that is newer than its sources, so that a repeated run does nothing.
$(VENV)/packages: requirements-dev.txt requirements-cuda.txt
	@test -n "$(PYTHON)" || { echo "expected a Python with venv, got none: install python3.11 and python3.11-venv, or set PYTHON"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-cuda.txt
	@touch $@

$(VENV)/package: $(VENV)/packages pyproject.toml setup.py
	ATROUS_SKIP_NATIVE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/native: $(VENV)/package $(CPP) csrc/flags.txt pyops/schemas.def triton_kernels/gpus.def
	@mkdir -p build && echo "building csrc (about a minute; build/native.log)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py build_ext --inplace > build/native.log 2>&1 \
		|| { grep -E "^atrous: |error" build/native.log || tail -20 build/native.log; exit 1; }
	@touch $@

setup: $(VENV)/native  ## create .venv with all dependencies, install the package editable, build csrc; minutes, by the download

demo: setup  ## compare ResNet34 with its fused copy, a few minutes on 2 cores: out/demo.json, out/demo.png
	@mkdir -p out
	$(BIN)/python -m atrous demo --json out/demo.json --plot out/demo.png

cpp-example: setup  ## classify a photograph with ResNet34 from C++, without Python: export, CMake, compare both outputs
	@MAKEFLAGS=--no-print-directory $(BIN)/python examples/cpp/compare.py --folder out/cpp

test: setup  ## run the tests that need neither a GPU nor much time, 10 minutes or more on 2 cores
	$(BIN)/python -m pytest $(PARALLEL) -m "not gpu and not gate" $(PYTEST_ARGS)

gates: setup build/gates-$(TREE)  ## run the slow checks (wheels, CMake, kernels, oldest triton), once per state of the tree

build/gates-$(TREE): | $(VENV)/native $(OLD_TRITON)/complete
	@echo "drawn tests and launches: SEED=$(SEED)"
	GATES_SEED=$(SEED) $(BIN)/python -m pytest $(PARALLEL) -m "gate and not gpu and not nightly" $(PYTEST_ARGS)
	PYTHONPATH=$(OLD_TRITON) $(BIN)/python -c 'import triton; assert triton.__version__ == "3.6.0", triton.__version__'
	PYTHONPATH=$(OLD_TRITON) GATES_SEED=$(SEED) TESTS_DRAWN=3 $(BIN)/python -m pytest $(PARALLEL) -m "not gpu and not gate" \
		$(wildcard tests/triton/test_triton_*.py tests/triton/conv/test_*.py) $(PYTEST_ARGS)
	PYTHONPATH=$(OLD_TRITON) GATES_SEED=$(SEED) $(BIN)/python -m pytest $(PARALLEL) -m gate $(STANDIN) \
		$(PYTEST_ARGS)
	@touch $@

gates-all: setup $(OLD_TRITON)/complete  ## run the slow checks and the oldest triton's tests whole, without a draw
	$(BIN)/python -m pytest $(PARALLEL) -m "gate and not gpu and not nightly" --whole --deselect $(STANDIN) $(PYTEST_ARGS)
	PYTHONPATH=$(OLD_TRITON) $(BIN)/python -m pytest $(PARALLEL) -m "not gpu and not gate" \
		$(wildcard tests/triton/test_triton_*.py tests/triton/conv/test_*.py) $(PYTEST_ARGS)
	$(MAKE) standin-all

STANDIN := tests/triton/test_triton_standin.py
standin-all: setup $(OLD_TRITON)/complete  ## run every launcher and config for three chips under the stand-in driver
	$(BIN)/python -m pytest $(PARALLEL) -m gate --whole $(STANDIN) $(PYTEST_ARGS)
	PYTHONPATH=$(OLD_TRITON) $(BIN)/python -m pytest $(PARALLEL) -m gate --whole $(STANDIN) $(PYTEST_ARGS)

# The oldest supported triton, in a folder that precedes .venv's on the path; its interpreter needs numpy < 2.4.
$(OLD_TRITON)/complete: $(VENV)/packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OLD_TRITON) \
		triton==3.6.0 numpy==2.3.5
	@touch $@

fuzz: setup  ## run COUNT=20000 random calls and fused models on every backend that a CPU has, SEED; results in out/fuzz*.json
	@mkdir -p out
	TRITON_INTERPRET=1 $(BIN)/python tests/fuzz/fuzz_conv.py --seed $(SEED) --count $$(($(COUNT) - $(COUNT) / 20)) \
		--models $$(($(COUNT) / 20)) --json out/fuzz.json
	$(BIN)/python tests/fuzz/fuzz_conv.py --backend emulation --seed $(SEED) --count $$(($(COUNT) / 10)) \
		--json out/fuzz-emulation.json

sanitize-all: setup  ## run CALLS=1000 drawn calls of each kind of csrc/cpu under ASan with UBSan and under TSan, SEED; logs in build/sanitize
	$(BIN)/python tests/support/sanitize/sanitized.py --seed $(SEED) --count $(CALLS)

opinfo-all: setup  ## compare with torch on every sample of its op_db and module_db, SEED for fuse(); counts in out/opinfo.json
	@mkdir -p out
	$(BIN)/python tests/opinfo/opinfo.py --seed $(SEED) --fused 40 --json out/opinfo.json
	TRITON_INTERPRET=1 $(BIN)/python tests/opinfo/opinfo.py --seed $(SEED) --backend triton --json out/opinfo-triton.json

fusion-all: setup  ## run the tests that take long: fused models in other modes, frozen, under Inductor; memory behind many calls
	$(BIN)/python -m pytest $(PARALLEL) -m nightly tests/fusion tests/api $(PYTEST_ARGS)

gpu-bundle:  ## build wheel and kernels for a GPU machine: out/gpu-bundle-*.tar.xz; ARCH, PY, TORCH, TRITON
	$(PYTHON) -m bench.gpu.bundle.command build $(BUNDLE)

gpu-bundle-download:  ## download torch, Triton and CUTLASS for gpu-bundle
	$(PYTHON) -m bench.gpu.bundle.command download $(BUNDLE)

gpu-bundle-check:  ## check that the bundle installs, loads, and has every kernel of right and fast
	$(PYTHON) -m bench.gpu.bundle.command check $(BUNDLE)

# PEERS=1 installs other libraries first. Without logging: a failure would print torch's traces. RESULTS: the folder of
# the results file. FULL: options of pytest.
RESULTS ?= out
bench: setup $(if $(PEERS),peers)  ## check and time atrous beside eager, torch.compile and, with PEERS=1, others; 10 minutes; RESULTS=out
	@mkdir -p out
	$(BIN)/python -m pytest bench -q -p no:logging --disable-warnings --benchmark-quiet --benchmark-json out/bench.json \
		--results $(RESULTS) $(FULL) $(PYTEST_ARGS)

bench-full: FULL := --full
bench-full: bench  ## bench with every mode of torch.compile, all activations, and sweeps over batch, size, channels, dilation

bench-results:  ## bench with PEERS=1 into bench/results, then bench-report: all that the README shows
	$(MAKE) bench PEERS=1 RESULTS=bench/results
	$(MAKE) bench-report

peers: $(VENV)/peers  ## install OpenVINO, ONNX Runtime and onnx into .venv, for bench

$(VENV)/peers: $(VENV)/packages requirements-peers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements-dev.txt -r requirements-peers.txt
	@touch $@

bench-compare: setup  ## compare speed with BASE=commit or BASE=results file; exit status 1 if slower than the noise
	@test -n "$(BASE)" || { echo "expected BASE=commit or BASE=FILE, got none"; exit 2; }
	$(BIN)/python -m bench.compare $(BASE)

bench-host: setup  ## measure compile time, and host time beside plain torch; fails above a budget; JSON in out/
	@mkdir -p out
	$(BIN)/python -m bench.commands.compile_time --json out/compile-time.json
	$(BIN)/python -m bench.commands.host_time --json out/host-time.json

public-models: $(PUBLIC)/complete  ## fuse models of public libraries that today's results (JSON=FILE: that file) lack, ONLY=TEXT some; docs/models.md
	$(PUBLIC)/bin/python -m bench.public_models.run $(if $(ONLY),--only "$(ONLY)") $(if $(JSON),--json "$(JSON)")
	$(BIN)/python -m bench.public_models.page

# The package is that of `make setup`: what it built works with any later torch.
$(PUBLIC)/complete: $(VENV)/native $(wildcard bench/public_models/requirements*.txt)
	@test -x $(PUBLIC)/bin/python || $(PYTHON) -m venv $(PUBLIC)
	$(PUBLIC)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/public_models/requirements.txt
	$(PUBLIC)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r bench/public_models/requirements-no-deps.txt
	ATROUS_SKIP_NATIVE=1 $(PUBLIC)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
		--no-deps -e .
	@touch $@

# By default every Python and torch of the table; pythonX.Y is looked for on the PATH. One takes about ten minutes of a core.
versions: setup  ## run functions and fuse() with one wheel of each Python in several torch: VERSIONS="3.11/2.13.0 ...", KEEP=1
	@PYTHONPATH=.:tests/support $(BIN)/python -m reliability.versions --versions "$(VERSIONS)" $(if $(KEEP),--keep); \
		status=$$?; $(BIN)/python -m bench.report.tried; exit $$status

bench-report:  ## write README's tables and pictures, the training curve, docs/models.md, CHANGELOG.md's versions from bench/results
	$(BIN)/python -m bench.report.report
	$(BIN)/python -m bench.report.picture
	$(BIN)/python -m bench.report.curves
	$(BIN)/python -m bench.public_models.page
	$(BIN)/python -m bench.report.tried

docs: setup  ## write docs/api.md from the docstrings, and draw the pictures of docs/dilation.md by its commands
	$(BIN)/python tests/support/pages/api_page.py docs/api.md
	PYTHONPATH=. $(BIN)/python tests/support/pages/dilation_page.py

reliability: setup  ## write docs/reliability.md: the cases of docs/cases.md on each backend, and what fuzz and opinfo-all left in out/
	$(BIN)/python tests/support/reliability/page.py --run

kernel-table: setup  ## write the tables of Triton and CUDA C++ kernels in docs/ (needs nvcc)
	$(BIN)/python tests/support/gates/conv_gate.py docs/triton-kernels.md
	$(BIN)/python tests/support/gates/cuda_table.py docs/cuda-kernels.md

# 1,000 steps a run: about 5 minutes each on 2 cores, the rest is for images, evaluation and the page. A run that was
# stopped goes on, and a finished one is not trained again: after a change of the sources, remove out/experiment.
EXPERIMENT := out/experiment
experiment: setup  ## train PReLU and LeakyReLU on synthetic vessels, 8 minutes; page in out/experiment; fails below an area of 0.95
	$(BIN)/python -m examples.vessels train --act prelu --steps 100 --epochs 10 --output $(EXPERIMENT)/prelu
	$(BIN)/python -m examples.vessels train --act leaky_relu --steps 100 --epochs 10 --output $(EXPERIMENT)/leaky_relu
	$(BIN)/python -m examples.vessels report $(EXPERIMENT)/prelu $(EXPERIMENT)/leaky_relu --output $(EXPERIMENT)/report \
		--require-area 0.95

lint: setup  ## run ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/package && ATROUS_SKIP_NATIVE=1 $(BIN)/python setup.py --quiet build_py --no-compile --build-lib build/package
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format:  ## format the sources with ruff and clang-format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean:  ## remove build outputs; .venv stays
	rm -rf build dist out *.egg-info pyops/*.so $(VENV)/native
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print | xargs rm -rf
