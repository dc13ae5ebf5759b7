#!/usr/bin/env bash
# Sets everything up in .venv, exports a model, runs it on an image and shows what is inside.
#
#   bash scripts/demo.sh                                     a seeded random NAT-Mini and a drawn picture
#   bash scripts/demo.sh nat_mini.pth photo.jpg [--arch …]   your checkpoint and your photo
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

echo "== Setting up .venv (a few minutes the first time)"
make_environment .venv
prepare_native
install_torch
install_packages ".[export,plot]"

mkdir -p out
if [ $# -ge 2 ]; then
  checkpoint=$1 image=$2
  shift 2
else
  checkpoint=out/nat_mini_random.pth image=out/picture.jpg
  set -- --arch nat_mini
  python examples/random_checkpoint.py nat_mini "$checkpoint"
  python examples/draw_picture.py "$image"
  echo "(random weights: the classes below mean nothing, the numbers are checked all the same)"
fi
show() { echo; echo "\$ $*"; "$@"; }
show na-deploy export "$checkpoint" -o out/model.onnx "$@"
show na-deploy run out/model.onnx "$image"
show na-deploy inspect out/model.onnx --plot out/model.png
echo
echo "The file is out/model.onnx, its attention windows are drawn in out/model.png."
