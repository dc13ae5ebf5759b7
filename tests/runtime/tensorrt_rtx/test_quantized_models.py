"""TensorRT-RTX's own parser and builder take quantized files, and keep their types. Needs no GPU."""

from __future__ import annotations

from pathlib import Path

import digits
import numpy as np
import pytest
from rtx_engines import build_rtx_engine, require_rtx

from na_deploy.runtime.quantization.quantize import QuantizationOptions, quantize
from na_deploy.runtime.tensorrt.api import RTX, load_module

BATCH = {"image": ((1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 32, 32))}


def parsed_types(model: Path) -> dict[str, list[tuple[str, str]]]:
    """Return, by kind of layer, the types of input and output of every layer that RTX's parser makes."""
    trt = load_module(RTX)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger).parse_from_file(str(model))
    found: dict[str, list[tuple[str, str]]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        types = (layer.get_input(0).dtype.name, layer.get_output(0).dtype.name) if layer.num_inputs else ("", "")
        found.setdefault(layer.type.name, []).append(types)
    return found


@pytest.mark.parametrize(
    ("kind", "target", "eight_bits", "count"),
    [("int8", "any", "INT8", 20), ("fp8", "tensorrt", "FP8", 17)],
)
def test_products_read_eight_bits_and_engines_are_built(
    kind: str, target: str, eight_bits: str, count: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    require_rtx()
    np.savez(tmp_path / "x.npz", image=digits.inputs("training")[:8])
    options = QuantizationOptions(kind, target)
    file = tmp_path / "quantized.onnx"
    quantize(digits.exported(tmp_path_factory), file, options, data=tmp_path / "x.npz")
    types = parsed_types(file)
    rounded = [pair for pair in types["QUANTIZE"] if pair == ("FLOAT", eight_bits)]
    widened = [pair for pair in types["DEQUANTIZE"] if pair == (eight_bits, "FLOAT")]
    assert len(rounded) >= count  # what each product reads
    assert len(widened) >= 2 * count  # and its weights
    assert build_rtx_engine(file, BATCH).engine_bytes > 10_000
