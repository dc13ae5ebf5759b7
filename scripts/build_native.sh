#!/usr/bin/env bash
# Compiles the operator library into the source tree (src/na_deploy/lib), where the package finds it when it runs from the
# tree. Only what changed is compiled again. Where it cannot be compiled it says why and succeeds, unless NA_DEPLOY_NATIVE=ON.
#
#   bash scripts/build_native.sh [--tests] [CMake options, such as -DNA_DEPLOY_CUDA=ON]
#
# --tests compiles what the native tests load or run as well; they would do it themselves.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=(all)
if [ "${1:-}" = --tests ]; then
  shift
  targets+=(native_tests)
  set -- -DNA_DEPLOY_TESTS=ON "$@"
fi
command -v cmake >/dev/null || {
  echo "note: the operator library is not compiled, there is no cmake (pip install cmake)" >&2
  [ "${NA_DEPLOY_NATIVE:-}" != ON ] || exit 1
  exit 0
}
generator=()
if command -v ninja >/dev/null && [ ! -e build/tree/CMakeCache.txt ]; then generator=(-G Ninja); fi
cmake -S . -B build/tree "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DSKBUILD=OFF -DNA_DEPLOY_NATIVE="${NA_DEPLOY_NATIVE:-AUTO}" "$@" >build/tree.log 2>&1 &&
  cmake --build build/tree --parallel --target "${targets[@]}" >>build/tree.log 2>&1 &&
  rm -rf src/na_deploy/lib &&
  cmake --install build/tree --prefix src >>build/tree.log 2>&1 || {
  cat build/tree.log >&2
  exit 1
}
