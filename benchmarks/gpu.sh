#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under eight minutes: builds the module for this device,
# runs the CUDA tests on it, every GPU benchmark, and small cases under compute-sanitizer where that
# is installed. Every stage has its time, none stops the others, and the table of all benchmarks
# comes last. Installs nothing: it needs CUDA's nvcc, a C++ compiler, and a Python with its headers,
# torch for CUDA, numba, pybind11, cmake, gymnasium, safetensors and pytest. CMAKE_ARGS goes to cmake.
#
#   benchmarks/gpu.sh [directory for logs and results, default build/gpu]
#   DRY_RUN=1 benchmarks/gpu.sh [directory]      without a device, as far as that goes
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-build/gpu}" && cd "${1:-build/gpu}" && pwd) || exit 1
PYTHON=${PYTHON:-python3}
DRY_RUN=${DRY_RUN:-}
LIMIT=470 BUILD_LIMIT=200 # seconds, of all stages together and of the build
[ -n "$DRY_RUN" ] && LIMIT=3000 BUILD_LIMIT=2000
PYTHON=$("$PYTHON" -c 'import sys; print(sys.executable)') || exit 1
# pip's cmake and ninja lie beside the Python that has them.
export PATH="${CUDA_HOME:-/usr/local/cuda}/bin:$(dirname "$PYTHON"):$PATH" PYTHONUNBUFFERED=1
summary=()

# What would only show when the device's time is spent.
for tool in cmake nvcc; do
  command -v "$tool" >/dev/null || { echo "$tool is not on PATH"; exit 1; }
done
"$PYTHON" - <<'END' || exit 1
import importlib.util, pathlib, sys, sysconfig
needed = ("torch", "numba", "pybind11", "gymnasium", "safetensors", "pytest")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
    print("Python.h is not beside this Python: the build will not find it without CMAKE_ARGS")
if missing:
    sys.exit("this Python lacks " + ", ".join(missing))
import trpo_fast
END

# stage NAME SECONDS COMMAND...: runs it to a log of that name, for so long or as long as is left.
stage() {
  local name=$1 seconds=$2 started=$SECONDS status word
  shift 2
  [ $((LIMIT - SECONDS)) -lt "$seconds" ] && seconds=$((LIMIT - SECONDS))
  printf '\n=== %s (%d s so far)\n' "$name" "$SECONDS"
  if [ "$seconds" -lt 5 ]; then
    summary+=("$name: left out, no time left")
    return 124
  fi
  timeout --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1
  status=$?
  tail -n 15 "$out/$name.log"
  case $status in
    0) word=ok ;;
    124 | 137) word="FAILED, ran out of its $seconds s" ;;
    *) word="FAILED with status $status" ;;
  esac
  summary+=("$name: $word ($((SECONDS - started)) s)")
  return "$status"
}

if [ -n "$DRY_RUN" ]; then
  arch=90
else
  stage device 20 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  arch=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
fi

build=$out/cmake-$arch
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
stage configure 40 cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release \
  -DTRPO_FAST_CUDA=ON -DTRPO_FAST_CUDA_ARCHITECTURES="$arch-real" -DPython_EXECUTABLE="$PYTHON" \
  -DCMAKE_CUDA_FLAGS=-lineinfo -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" ${CMAKE_ARGS:-}
stage build "$BUILD_LIMIT" cmake --build "$build" -j "$(nproc)"
# A package of its own, so that nothing in this checkout or in an installed one is mixed with it.
rm -rf "$out/package" && mkdir -p "$out/package" && cp -r trpo_fast "$out/package/"
rm -f "$out"/package/trpo_fast/_core*.so
cp "$build"/_core*.so "$out/package/trpo_fast/"
cat >"$out/package/sitecustomize.py" <<'END'
import sys
# An editable install of this checkout comes before PYTHONPATH.
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
END
export PYTHONPATH="$out/package:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
export TRPO_FAST_REQUIRE_NATIVE=1
command -v cuobjdump >/dev/null &&
  cuobjdump --dump-resource-usage "$out"/package/trpo_fast/_core_cuda*.so 2>/dev/null |
  grep -A1 -E '(policy|tiled)_kernel' >"$out/resources.log"

# Tests of the device alone: what is emulated elsewhere would take the stage's time.
export TRPO_FAST_EMULATION="$out/none"
pytest=("$PYTHON" -m pytest -p no:cacheprovider -W default -o faulthandler_timeout=30 -q)
stage tests 60 "${pytest[@]}" tests/backends/cuda
stage parity 90 "${pytest[@]}" tests/backends/test_parity.py \
  tests/backends/test_near_certainty.py -k "cuda and not emulated"

# A process a size: what one breaks on the device, the next does not see.
results=()
if [ -n "$DRY_RUN" ]; then
  results+=("$out/lines-dry.json")
  stage benchmark-dry 60 "$PYTHON" benchmarks/gpu.py --dry-run --out "${results[0]}"
else
  rm -f "$out"/lines-*.json
  for size in 0 1 2 3 4 5; do
    results+=("$out/lines-$size.json")
    stage "benchmark-$size" 45 "$PYTHON" benchmarks/gpu.py --only "$size" --out "$out/lines-$size.json"
  done
fi

# Environment, + inference, + training: steps a second of a torch environment.
if [ -n "$DRY_RUN" ]; then
  stage throughput-dry 60 "$PYTHON" benchmarks/tensor_throughput.py --envs 64 --hidden 16
else
  stage throughput 40 "$PYTHON" benchmarks/tensor_throughput.py --device cuda \
    --out "$out/throughput.json"
fi
# The same of Brax's ant, through JAX on the same device. JAX would take most of its memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
jax=$(timeout 40 "$PYTHON" -c 'import brax, jax; print(jax.default_backend())' 2>"$out/jax.log" |
  tail -n 1)
if [ -n "$DRY_RUN" ] && [ -n "$jax" ]; then
  stage brax-dry 120 "$PYTHON" benchmarks/tensor_throughput.py --brax inverted_pendulum \
    --envs 64 --hidden 16
elif [ "$jax" = gpu ]; then
  stage brax 90 "$PYTHON" benchmarks/tensor_throughput.py --brax ant --device cuda \
    --out "$out/brax.json"
else
  summary+=("brax: left out, brax or JAX for this device is not installed (jax.log)")
fi

for tool in memcheck racecheck synccheck; do
  if ! command -v compute-sanitizer >/dev/null; then
    summary+=("$tool: left out, compute-sanitizer is not installed")
  elif [ -z "$DRY_RUN" ]; then
    options=(--tool "$tool" --kernel-name kns=trpo_fast --error-exitcode 9)
    # Calls that torch makes to find out what a driver can do fail as they may.
    [ "$tool" = memcheck ] && options+=(--report-api-errors no)
    # Without torch's cache every tensor has bounds of its own.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$tool" 50 compute-sanitizer "${options[@]}" \
      "$PYTHON" benchmarks/gpu_small.py 35
  fi
done

printf '\n=== results\n'
"$PYTHON" benchmarks/gpu.py --show "${results[@]}"
printf '\n=== %d s, logs in %s\n' "$SECONDS" "$out"
printf '%s\n' "${summary[@]}"
printf '%s\n' "${summary[@]}" | grep -q FAILED && exit 1
exit 0
