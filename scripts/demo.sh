#!/usr/bin/env bash
# Sets everything up in .venv, exports a model, runs it on an image and shows what is inside.
#
#   bash scripts/demo.sh                                     a trained reader of digits, and a NAT-Mini with random weights
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
show() { echo; echo "\$ $*"; "$@"; }
if [ $# -ge 2 ]; then
  checkpoint=$1 image=$2
  shift 2
else
  echo; echo "== A trained model, and a handwritten digit that its training did not see"
  show na-deploy export examples/digits/digits.pth -o out/digits.onnx
  show na-deploy run out/digits.onnx examples/digits/seven.png --top 3
  echo; echo "== A model of the published size"
  checkpoint=out/nat_mini_random.pth image=out/picture.jpg
  set -- --arch nat_mini
  python examples/random_checkpoint.py nat_mini "$checkpoint"
  python examples/draw_picture.py "$image"
  echo "(random weights: its classes mean nothing; it shows speed, and that the numbers are PyTorch's)"
fi
show na-deploy export "$checkpoint" -o out/model.onnx "$@"
show na-deploy run out/model.onnx "$image"
if [ "$checkpoint" = out/nat_mini_random.pth ]; then show na-deploy bench out/model.onnx --duration 2 --compare-to bodies; fi
show na-deploy inspect out/model.onnx --plot out/model.png
echo
echo "The file is out/model.onnx, its attention windows are drawn in out/model.png."
