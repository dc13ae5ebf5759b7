# Sourced by demo.sh and test.sh: a virtual environment with na-deploy in it, made once and brought up to date after.
#
# TORCH_INDEX, if set, is the package index to take PyTorch from: its CPU packages are far smaller than the default ones.

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or later was found; install it (Debian, Ubuntu: apt install python3 python3-venv)" >&2
  return 1
}

# make_environment FOLDER: creates the virtual environment and activates it.
make_environment() {
  local python
  python=$(find_python) || return 1
  if [ ! -x "$1/bin/pip" ]; then
    rm -rf "$1"
    if ! "$python" -m venv "$1" 2>/dev/null; then
      rm -rf "$1"
      echo "error: $python cannot make virtual environments; install venv (Debian, Ubuntu: apt install python3-venv)" >&2
      return 1
    fi
  fi
  # shellcheck source=/dev/null
  . "$1/bin/activate"
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  # Modules are compiled when they are first imported, and once: containers often forbid to keep what was compiled.
  unset PYTHONDONTWRITEBYTECODE
}

# prepare_native: fetches what compiling the operator library needs; goes on without where it cannot be had.
# With NA_DEPLOY_NATIVE=OFF nothing is fetched or compiled; models then run on their embedded function bodies.
prepare_native() {
  bash scripts/native_dependencies.sh
}

# prepare_browser: installs Chromium, in which the server's page is tested, where apt and root can; says so where not.
# With NA_DEPLOY_BROWSER=ON, as in continuous integration, a missing Chromium then fails the tests of the page.
prepare_browser() {
  if command -v chromium >/dev/null && command -v chromedriver >/dev/null && command -v curl >/dev/null; then return; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium chromium-driver curl; } >/dev/null 2>&1; then
    return
  fi
  echo "note: the server's page is not tested, Chromium is missing (Debian: apt install chromium chromium-driver curl)" >&2
}

# install_packages ARGUMENTS…: pip install, quiet, with the pinned versions. Python compiles a module when it is first
# imported, and most of those installed never are.
install_packages() {
  pip install --quiet --progress-bar off --no-compile -c constraints.txt "$@"
}

install_torch() {
  if [ -n "${TORCH_INDEX:-}" ]; then
    install_packages --index-url "$TORCH_INDEX" torch==2.13.0
  else
    install_packages torch==2.13.0
  fi
}
