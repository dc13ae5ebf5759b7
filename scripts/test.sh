#!/usr/bin/env bash
# Sets everything up in .venv-test and checks everything: style, types, imports, documentation, tests.
#
#   bash scripts/test.sh           all but the slow proofs: at most 12 minutes on two cores
#   bash scripts/test.sh -m slow   the slow proofs alone; arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

check_sources() {
  echo "== Style"
  ruff check .
  ruff format --check .
  git ls-files 'plugins/*' 'examples/*' | grep -E '\.(h|cpp|cu|cuh)$' | xargs clang-format --dry-run --Werror
  echo "== Types"
  mypy
  echo "== Imports"
  lint-imports --no-logo
  echo "== Documentation"
  mkdocs build --strict --quiet
}

echo "== Setting up .venv-test (a few minutes the first time)"
make_environment .venv-test
# What C++ is compiled with and against, OpenVINO among it; it compiles while the rest is installed. What is installed, the
# tree's library, the wheel below and the native tests have one build folder, so each file is compiled once.
install_packages setuptools build scikit-build-core cmake ninja openvino
mkdir -p build
{ prepare_native && bash scripts/build_native.sh --tests; } >build/prepare_native.log 2>&1 &
compiling=$!
prepare_browser
install_torch
# NATTEN, the oracle of the tests, builds against the PyTorch that is installed, so not in pip's isolated environment.
install_packages --no-build-isolation natten==0.21.7
# The tests run on this tree: nothing is installed again when a file changes, C++ is compiled where it changed.
install_packages --no-build-isolation --config-settings build-dir=build/tree -e ".[test]"
echo "== Checking the sources, while other people's packages and Triton's server are installed"
check_sources >build/check_sources.log 2>&1 &
checking=$!
# Other people's packages, whose modules are exported unedited; a second time it does nothing.
bash scripts/third_party.sh
export NA_DEPLOY_THIRD_PARTY=ON
status=0
wait "$compiling" || status=$?
cat build/prepare_native.log
[ "$status" = 0 ] || exit "$status"
# Triton's environment, of its own, gets a wheel.
rm -rf build/wheel
pip wheel --quiet --no-deps --no-build-isolation --config-settings build-dir=build/tree --wheel-dir build/wheel .
bash scripts/triton_server.sh build/wheel/*.whl
wait "$checking" || status=$?
cat build/check_sources.log
[ "$status" = 0 ] || exit "$status"

echo "== Tests"
# Each process has a core: threads of their own would wait for each other. Files stay whole, since their tests share what they made.
OMP_NUM_THREADS=1 pytest -n "${NA_DEPLOY_TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder -m "not slow" "$@"
