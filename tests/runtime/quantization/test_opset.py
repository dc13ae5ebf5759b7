"""The earlier opset of quantized files: the same numbers, and files that cannot state it are left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from na_deploy.runtime.quantization.opset import OPSET, lower_opset

GRAPH = """
<ir_version: 10, opset_import: ["": 22]>
norms ({kind}[2, 6, H, 5] x, {kind}[6] scale, {kind}[6] shift) => ({kind}[2, 6, H, 5] y)
{{
  y = GroupNormalization <num_groups = 3, epsilon = 0.01> (x, scale, shift)
}}
"""


def ran(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feeds)[0]
    return found


@pytest.mark.parametrize(("kind", "limit"), [("float", 1e-5), ("float16", 2e-3)])
@pytest.mark.parametrize("height", [1, 7])
def test_group_norms_are_written_out_with_a_scale_for_each_channel(kind: str, limit: float, height: int):
    model = onnx.parser.parse_model(GRAPH.format(kind=kind))
    random, number = np.random.default_rng(height), np.float32 if kind == "float" else np.float16
    shapes = {"x": (2, 6, height, 5), "scale": (6,), "shift": (6,)}
    feeds = {name: (3 * random.standard_normal(shape) + 1).astype(number) for name, shape in shapes.items()}
    lower_opset(model)
    assert model.opset_import[0].version == OPSET
    assert "GroupNormalization" not in {node.op_type for node in model.graph.node}
    x = feeds["x"].astype(np.float64).reshape(2, 3, -1)
    x = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 0.01)
    factor, shift = (feeds[name].astype(np.float64)[:, None, None] for name in ("scale", "shift"))
    expected = x.reshape(feeds["x"].shape) * factor + shift
    found = ran(model, feeds)
    assert found.dtype == number
    assert np.abs(found - expected).max() < limit * np.abs(expected).max()


def test_a_model_with_an_operator_of_later_opsets_is_left_as_it_is():
    text = '<ir_version: 11, opset_import: ["": 23]> one (float[2, 4] x, float[4] w) => (float[2, 4] y) '
    model = onnx.parser.parse_model(text + "{ y = RMSNormalization (x, w) }")
    before = model.SerializeToString()
    lower_opset(model)
    assert model.SerializeToString() == before
