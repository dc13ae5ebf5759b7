#!/usr/bin/env bash
# Fetches what compiling the operator libraries needs and the system lacks, into build/native (see cmake/Dependencies.cmake,
# cmake/Tbb.cmake): ONNX Runtime's headers, which its Python package does not contain, the sources of the SIMD library Highway,
# and oneTBB, which OpenVINO brings to run with.
# All come from Debian's archive through apt, which checks their signatures; nothing is installed, root is not needed.
#
# Without a compiler, apt or a network it says what is missing and succeeds: na-deploy then runs on the function bodies.
# NA_DEPLOY_NATIVE=OFF skips it, ON makes what is missing an error; ONNXRUNTIME_INCLUDE_DIR, HIGHWAY_SOURCE_DIR and TBB_ROOT name
# what is already on the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${NA_DEPLOY_FETCH_FOLDER:-$PWD/build/native}
# The first release of Debian that has ONNX Runtime, and one whose oneTBB is not later than OpenVINO's.
release=trixie
release_of_tbb=bookworm
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

without() {
  if [ "${NA_DEPLOY_NATIVE:-}" = ON ]; then
    echo "error: the native kernels cannot be built: $1" >&2
    exit 1
  fi
  echo "note: native kernels are not built, models run on their embedded function bodies: $1" >&2
  exit 0
}

have_onnxruntime() {
  [ -n "${ONNXRUNTIME_INCLUDE_DIR:-}" ] || [ -e "$folder/onnxruntime/onnxruntime_cxx_api.h" ] ||
    [ -e /usr/include/onnxruntime/onnxruntime_cxx_api.h ] || [ -e /usr/local/include/onnxruntime/onnxruntime_cxx_api.h ]
}

have_highway() {
  [ -n "${HIGHWAY_SOURCE_DIR:-}" ] || [ -e "$folder/highway/hwy/highway.h" ]
}

have_tbb() {
  [ "$(uname -s)" != Linux ] || [ -n "${TBB_ROOT:-}" ] || [ -e "$folder/tbb/include/tbb/parallel_for.h" ]
}

# archive: the Debian archive that this machine uses for its own packages, the public one on other systems.
archive() {
  local found
  found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/\?$' || true)
  echo "${found:-http://deb.debian.org/debian}"
}

# private_apt ARGUMENTS…: apt-get on the archive's release alone, with lists and cache of its own.
private_apt() {
  apt-get -qq -o "Dir::Etc::SourceList=$work/debian.sources" -o Dir::Etc::SourceParts=- \
    -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User= "$@"
}

if [ "${NA_DEPLOY_NATIVE:-}" = OFF ]; then exit 0; fi
if have_onnxruntime && have_highway && have_tbb; then exit 0; fi
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
  without "there is no C++ compiler (Debian, Ubuntu: apt install g++)"
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
  without "this system has no apt to take headers with; docs/build.md says where else to have them from"
[ -e "$keyring" ] || without "Debian's keys are not installed (Ubuntu: apt install debian-archive-keyring)"

mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
cat >"$work/debian.sources" <<SOURCES
Types: deb deb-src
URIs: $(archive)
Suites: $release $release_of_tbb
Components: main
Signed-By: $keyring
SOURCES

cd "$work"
private_apt update >apt.log 2>&1 || without "Debian's archive cannot be read: $(tail -n 1 apt.log)"
if ! have_onnxruntime; then
  private_apt download libonnxruntime-dev >apt.log 2>&1 ||
    without "Debian has no ONNX Runtime headers for this machine: $(tail -n 1 apt.log)"
  dpkg-deb -x libonnxruntime-dev_*.deb onnxruntime-package
  rm -rf "$folder/onnxruntime"
  mv onnxruntime-package/usr/include/onnxruntime "$folder/onnxruntime"
fi
if ! have_highway; then
  private_apt source --download-only highway >apt.log 2>&1 ||
    without "Highway's sources cannot be had from Debian: $(tail -n 1 apt.log)"
  mkdir highway
  tar -xf highway_*.orig.tar.* -C highway --strip-components 1
  rm -rf "$folder/highway"
  mv highway "$folder/highway"
fi
if ! have_tbb; then
  private_apt download "libtbb-dev/$release_of_tbb" "libtbb12/$release_of_tbb" >apt.log 2>&1 ||
    without "Debian has no oneTBB for this machine: $(tail -n 1 apt.log)"
  mkdir -p tbb/lib
  for package in libtbb-dev_*.deb libtbb12_*.deb; do dpkg-deb -x "$package" tbb-package; done
  mv tbb-package/usr/include tbb/include
  mv tbb-package/usr/lib/*/libtbb.so.12* tbb/lib
  rm -rf "$folder/tbb"
  mv tbb "$folder/tbb"
fi
echo "Fetched ONNX Runtime's headers, Highway and oneTBB into ${folder#"$OLDPWD"/}."
