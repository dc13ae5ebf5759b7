"""Networks that people run on NATTEN export unedited, compute what they compute, and build in TensorRT-RTX."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from rtx_engines import build_rtx_engine
from torch import Tensor

from na_deploy import export
from na_deploy.attention import torch_tiles
from na_deploy.attention.torch_ops import use_implementation
from na_deploy.exporter import ExportReport
from na_deploy.exporter.natten_api import importable_natten, replaced_natten

EXAMPLES = Path(__file__).parents[2] / "examples"
NETWORKS = {  # and how many of their layers are neighborhood attention
    "hourglass:small": 2,
    "all_in_one:small": 9,
    "diffusion_block:small": 1,
    "weather:small": 2,
    "style:small": 9,
    "video:small": 2,
    "hugging_face:small": 6,
    "hugging_face:small_backbone": 6,
    "hugging_face:small_pixels": 6,
}


def network(name: str) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    file, _, factory = name.partition(":")
    sys.path.insert(0, str(EXAMPLES))
    try:
        with importable_natten():
            module: ModuleType = importlib.import_module(f"natten_models.{file}")
    finally:
        sys.path.remove(str(EXAMPLES))
    generator = torch.Generator().manual_seed(7)
    sizes = module.INPUTS["small"]
    inputs = {key: torch.rand(size, generator=generator) + 0.1 for key, size in sizes.items()}
    torch.manual_seed(11)
    return getattr(module, factory)().eval(), inputs


BUILT = ("all_in_one:small", "diffusion_block:small", "weather:small", "video:small")
"""Those that TensorRT-RTX builds in each run of the tests: 1-D, 2-D and 3-D windows, circular padding."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportReport]:
    """Export a network once."""
    folder = tmp_path_factory.mktemp("natten_models")

    @cache
    def once(name: str) -> ExportReport:
        return export(*network(name), folder / f"{name.replace(':', '_')}.onnx")

    return once


@pytest.mark.parametrize("name", NETWORKS)
def test_it_exports_and_computes_the_same(name: str, exported: Callable[[str], ExportReport]):
    module, inputs = network(name)
    report = exported(name)
    assert report.attention_layers == NETWORKS[name]
    assert report.notices == ()
    # Against a dense mask in PyTorch, which shares nothing with the file's tiles.
    with torch.inference_mode(), replaced_natten(module), use_implementation(torch_tiles.dense):
        expected = torch.utils._pytree.tree_leaves(module(**inputs))
    session = ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    found = session.run(None, {key: tensor.numpy() for key, tensor in inputs.items()})
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 2e-5 * np.abs(theirs.numpy()).max()


@pytest.mark.parametrize(
    "name", [name if name in BUILT else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_tensorrt_rtx_builds_it(name: str, exported: Callable[[str], ExportReport]):
    assert build_rtx_engine(exported(name).path).engine_bytes > 10_000


def test_half_precision_and_free_axes(tmp_path: Path):
    module, inputs = network("diffusion_block:small")
    free = {"video": {0: "batch"}, "text": {0: "batch", 1: "words"}, "time": {0: "batch"}}
    half = export(
        module.half(), {key: tensor.half() for key, tensor in inputs.items()}, tmp_path / "half.onnx", dynamic=free
    )
    assert half.notices == ()
    types = {value.type.tensor_type.elem_type for value in onnx.load(half.path).graph.input}
    assert types == {onnx.TensorProto.FLOAT16}
    session = ort.InferenceSession(str(half.path), providers=["CPUExecutionProvider"])
    three = {key: np.repeat(tensor.half().numpy(), 3, 0) for key, tensor in inputs.items()}
    three["text"] = three["text"][:, :4]
    assert session.run(None, three)[0].shape == (3, 4, 8, 12, 64)
    narrow = export(
        module.bfloat16(), {key: tensor.bfloat16() for key, tensor in inputs.items()}, tmp_path / "narrow.onnx"
    )
    assert narrow.difference < narrow.tolerance
