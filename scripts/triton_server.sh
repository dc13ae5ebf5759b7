#!/usr/bin/env bash
# Installs NVIDIA Triton's server with its Python backend into an environment of its own, .venv-triton, for the tests
# and benchmarks/serving_on_triton.py. It comes from the wheel of nvidia-pytriton (PyPI, Apache-2.0, 55 MB); nothing else of it is used.
#
#   bash scripts/triton_server.sh [na_deploy wheel]
#
# The environment has NumPy 1: with NumPy 2 this release of the Python backend answers with empty tensors and no error.
# Where it cannot be installed, it says why and succeeds, and the tests that need it are skipped; NA_DEPLOY_TRITON=OFF
# skips it, ON makes what is missing an error.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

without() {
  if [ "${NA_DEPLOY_TRITON:-}" = ON ]; then
    echo "error: Triton's server cannot be installed: $1" >&2
    exit 1
  fi
  echo "note: tests on Triton's server will be skipped: $1" >&2
  exit 0
}

if [ "${NA_DEPLOY_TRITON:-}" = OFF ]; then exit 0; fi
[ "$(uname -sm)" = "Linux x86_64" ] || without "its wheel is for Linux on x86-64, this is $(uname -sm)"

folder=$PWD/.venv-triton
make_environment "$folder"
python=$folder/bin/python
# The backend's stub is linked with the interpreter's shared library.
library=$("$python" - <<'PYTHON'
import ctypes.util, pathlib, sys, sysconfig

name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
variables = [sysconfig.get_config_var(v) for v in ("LIBDIR", "LIBPL")] + ["/usr/lib/x86_64-linux-gnu", "/usr/lib64"]
print(next((v for v in variables if v and (pathlib.Path(v) / name).is_file()), ""))
PYTHON
)
[ -n "$library" ] || without "$("$python" -V) has no shared library (Debian, Ubuntu: apt install libpython3-dev)"
install_packages --no-deps nvidia-pytriton==0.7.0 || without "pip cannot install nvidia-pytriton"
# pip would say that nvidia-pytriton's own dependencies are missing; its server needs none of them.
install_packages --no-warn-conflicts "numpy>=1.26,<2" "${1:-.}" || without "pip cannot install na-deploy beside NumPy 1"
pip install --quiet --progress-bar off --no-compile --no-deps --force-reinstall "${1:-.}" || without "pip cannot install na-deploy"

server=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pytriton/tritonserver
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
stub=$server/python_backend_stubs/$version/triton_python_backend_stub
[ -e "$stub" ] || without "it has no Python backend for Python $version"
cp "$stub" "$server/backends/python/"
# tests/support/triton_server.py reads this: where libpython lies.
echo "$library" >"$folder/libpython_folder"
