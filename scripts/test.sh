#!/usr/bin/env bash
# Sets everything up in .venv-test and checks everything: style, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

echo "== Setting up .venv-test (a few minutes the first time)"
make_environment .venv-test
prepare_native
prepare_browser
install_torch
# NATTEN, the oracle of the tests, builds against the PyTorch that is installed, so not in pip's isolated environment.
install_packages setuptools build scikit-build-core cmake ninja
install_packages --no-build-isolation natten==0.21.7
install_packages ".[test]"
# The tests run on this tree: nothing is installed again when a file changes, C++ is compiled where it changed.
install_packages --no-deps --no-build-isolation -e .
bash scripts/build_native.sh
# Other people's packages, whose modules are exported unedited; a second time it does nothing.
bash scripts/third_party.sh
export NA_DEPLOY_THIRD_PARTY=ON
# Triton's environment, of its own, gets a wheel.
rm -rf build/wheel
pip wheel --quiet --no-deps --wheel-dir build/wheel .
bash scripts/triton_server.sh build/wheel/*.whl

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
echo "== Tests"
pytest -n "${NA_DEPLOY_TEST_PROCESSES:-2}" --dist worksteal "$@"
