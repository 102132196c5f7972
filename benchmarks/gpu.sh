#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under eight minutes: builds the module for this device,
# runs the CUDA tests on it, the small cases under compute-sanitizer, and every GPU benchmark, whose
# table comes last. Installs nothing: it needs CUDA's nvcc, and a Python with torch for CUDA, numba,
# pybind11, scikit-build-core, cmake, ninja, gymnasium, safetensors and pytest.
#
#   benchmarks/gpu.sh [directory for logs and results, default build/gpu]
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-build/gpu}" && cd "${1:-build/gpu}" && pwd)
PYTHON=${PYTHON:-python3}
export PATH="${CUDA_HOME:-/usr/local/cuda}/bin:$PATH" PYTHONUNBUFFERED=1
failed=0

step() {
  printf '\n=== %s (%d s so far)\n' "$1" "$SECONDS"
}

step "device"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1
arch=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1

step "build for compute capability $arch"
build=$out/cmake-$arch
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTRPO_FAST_CUDA=ON \
  -DTRPO_FAST_CUDA_ARCHITECTURES="$arch" -DPython_EXECUTABLE="$("$PYTHON" -c 'import sys; print(sys.executable)')" \
  -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" >"$out/cmake.log" 2>&1 &&
  cmake --build "$build" >"$out/build.log" 2>&1 || { tail -40 "$out/cmake.log" "$out/build.log"; exit 1; }
# A package of its own, so that nothing in this checkout or in an installed one is mixed with it.
rm -rf "$out/package" && mkdir -p "$out/package" && cp -r trpo_fast "$out/package/"
cp "$build"/_core*.so "$out/package/trpo_fast/"
export PYTHONPATH="$out/package:$PWD/benchmarks" TRPO_FAST_REQUIRE_NATIVE=1
cuobjdump --dump-resource-usage "$out"/package/trpo_fast/_core_cuda*.so 2>/dev/null |
  grep -A1 -E '(policy|tiled)_kernel' | tee "$out/resources.log"

step "tests on the device"
timeout 150 "$PYTHON" -m pytest -p no:cacheprovider -W default -q -x tests/backends/test_parity.py \
  tests/backends/test_cuda.py tests/backends/test_cuda_tiles.py \
  tests/backends/test_cuda_rollout.py -k "cuda and not emulated" 2>&1 | tee "$out/tests.log" | tail -15
[ "${PIPESTATUS[0]}" -eq 0 ] || failed=1

for tool in memcheck racecheck synccheck; do
  step "compute-sanitizer $tool, small cases"
  timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" benchmarks/gpu_small.py \
    >"$out/$tool.log" 2>&1
  status=$?
  tail -3 "$out/$tool.log"
  if [ "$status" -ne 0 ]; then
    echo "$tool ended with status $status (124: ran out of its minute); see $out/$tool.log"
    failed=1
  fi
done

step "benchmarks"
timeout 180 "$PYTHON" benchmarks/gpu.py --out "$out/gpu.json" 2>&1 | tee "$out/benchmarks.log" || failed=1
printf '\n=== done after %d s, %s\n' "$SECONDS" "$([ $failed -eq 0 ] && echo all green || echo 'SOMETHING FAILED, see above')"
exit $failed
