#!/usr/bin/env bash
# Builds the GPU kernels for the present device, checks them against float64 and times them beside what else there is.
# Needs nvcc and PyTorch with CUDA; nothing of na-deploy. With onnxruntime-gpu, onnx and what scripts/native_dependencies.sh
# fetches, a model runs through ONNX Runtime's CUDA provider too. The table and the numbers go to the given folder.
#
#   bash scripts/gpu_check.sh [folder] [options of benchmarks/gpu_check.py]
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
output="${1:-gpu_check}"
shift || true
command -v nvcc >/dev/null || { echo "error: nvcc was not found; install the CUDA toolkit or add it to PATH" >&2; exit 1; }
missing=""
for module in torch numpy ml_dtypes pytest; do python3 -c "import $module" 2>/dev/null || missing="$missing $module"; done
[ -z "$missing" ] || { echo "error: Python lacks$missing; pip install$missing" >&2; exit 1; }
PYTHONUNBUFFERED=1 python3 "$root/benchmarks/gpu_check.py" --output "$output" "$@"
