#!/usr/bin/env bash
# Installs packages whose modules the tests export unedited into build/third_party, apart from everything else: without their
# dependencies, which would change PyTorch, and with the little that those modules import. About 50 MB to download.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=build/third_party
done_with="$folder/installed"
if cmp --silent "$0" "$done_with"; then exit 0; fi
rm -rf "$folder"
into() { "${PYTHON:-python}" -m pip install --quiet --no-compile --no-deps --target "$folder/$1" "${@:2}"; }
into packages \
  hdit==0.0.1b6 allin1==1.1.0 nvidia-physicsnemo==2.2.2 earth2studio==0.19.0 \
  einops==0.8.2 hydra-core==1.3.8 jaxtyping==0.3.11 wadler-lindig==0.1.8 loguru==0.7.3 torch-harmonics==0.9.3 \
  timm==1.0.31 torchvision==0.29.1 tensordict==0.15.3 pyvers==0.2.3 orjson==3.13.0 cloudpickle==3.1.3 \
  antlr4-python3-runtime==4.9.3 treelib==1.8.0 termcolor==3.3.0 nvtx==0.2.17 importlib-metadata==10.2.0 zipp==4.1.2
# Its DiNAT is broken.
into transformers transformers==4.57.6 tokenizers==0.22.1
# Hugging Face's kernels, which need a newer hub than transformers 4.53.
into kernels kernels==0.17.2 huggingface-hub==1.11.0 httpx==0.28.1 httpcore==1.0.9 tomlkit==0.15.2
cp "$0" "$done_with"
