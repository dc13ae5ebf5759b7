"""Models of one operator's node, tensors for them, and what float64 says of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from na_deploy.attention.reference import AttentionResult, reference_attention, reference_attention_qkv
from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR
from na_deploy.attention.windows import NeighborhoodSpec

Arrays = dict[str, np.ndarray]
ELEMENTS = {
    "float32": (np.dtype(np.float32), TensorProto.FLOAT, 2e-6),
    "float16": (np.dtype(np.float16), TensorProto.FLOAT16, 1e-3),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16, 8e-3),
}
PACKED_INPUTS = ("qkv", "rel_pos_bias", "padding")
SEPARATE_INPUTS = ("query", "key", "value", "rel_pos_bias", "additional_key", "additional_value")


def node_model(
    operator: str,
    arrays: Mapping[str, np.ndarray],
    dynamic: bool = False,
    lse: bool = True,
    dtype: str = "float32",
    **attributes: Any,
) -> onnx.ModelProto:
    """One node over inputs of the arrays' shapes; outputs are declared without shapes, for the library to infer."""
    names = PACKED_INPUTS if operator == PACKED_OPERATOR else SEPARATE_INPUTS
    inputs = [name if name in arrays else "" for name in names]
    while not inputs[-1]:
        inputs.pop()
    element = ELEMENTS[dtype][1]
    spatial = len(attributes.get("kernel_size", (1,)))

    def sizes(name: str, array: np.ndarray) -> list[int | str]:
        shape: list[int | str] = list(array.shape)
        if dynamic and name not in ("rel_pos_bias", "padding"):
            shape[0] = "batch"
            if not name.startswith("additional"):
                shape[1 : 1 + spatial] = [f"length{axis}" for axis in range(spatial)]
        return shape

    outputs = ["output", "lse"] if lse else ["output"]
    node = helper.make_node(operator, inputs, outputs, name="layer3.attn", domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(name, element, sizes(name, array)) for name, array in arrays.items()],
        [
            helper.make_tensor_value_info(name, element if name == "output" else TensorProto.FLOAT, None)
            for name in outputs
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype(ELEMENTS[dtype][0])


def packed(
    batch: int,
    lengths: Sequence[int],
    heads: int,
    head_dim: int,
    kernel_size: Sequence[int] = (),
    dtype: str = "float32",
) -> Arrays:
    """A packed tensor and, given a kernel size, a bias."""
    arrays = {"qkv": normal(batch, *lengths, 3, heads, head_dim, dtype=dtype)}
    if kernel_size:
        arrays["rel_pos_bias"] = normal(heads, *(2 * size - 1 for size in kernel_size), dtype=dtype)
    return arrays


def separate(
    batch: int,
    lengths: Sequence[int],
    heads: tuple[int, int],
    dims: tuple[int, int],
    extra: int = 0,
    dtype: str = "float32",
) -> Arrays:
    """Query, key and value of H and Hkv heads, D and Dv wide, and M additional keys."""
    arrays = {
        "query": normal(batch, *lengths, heads[0], dims[0], dtype=dtype),
        "key": normal(batch, *lengths, heads[1], dims[0], dtype=dtype, seed=1),
        "value": normal(batch, *lengths, heads[1], dims[1], dtype=dtype, seed=2),
    }
    if extra:
        arrays["additional_key"] = normal(batch, extra, heads[1], dims[0], dtype=dtype, seed=3)
        arrays["additional_value"] = normal(batch, extra, heads[1], dims[1], dtype=dtype, seed=4)
    return arrays


def reference(operator: str, arrays: Arrays, attributes: Mapping[str, Any]) -> AttentionResult:
    attributes = dict(attributes)
    scale = attributes.pop("scale", None)
    spec = NeighborhoodSpec.create(len(attributes["kernel_size"]), **attributes)
    function = reference_attention_qkv if operator == PACKED_OPERATOR else reference_attention
    return function(**arrays, spec=spec, scale=scale)  # type: ignore[operator]


def expect_reference(
    found: Arrays,
    operator: str,
    arrays: Arrays,
    attributes: Mapping[str, Any],
    dtype: str,
    tolerance: float | None = None,
) -> None:
    """Hold outputs to float64, within the CPU kernels' tolerance if none is given."""
    expected = reference(operator, arrays, attributes)
    tolerance = tolerance or ELEMENTS[dtype][2]
    assert found["output"].dtype == ELEMENTS[dtype][0]
    assert found["output"].shape == expected.output.shape
    largest = np.abs(expected.output).max()
    assert np.abs(found["output"].astype(np.float64) - expected.output).max() / largest < tolerance
    if "lse" in found:
        assert found["lse"].dtype == np.float32
        np.testing.assert_allclose(found["lse"], expected.lse, rtol=1e-5, atol=1e-5)


PACKED_CASES = {
    "nat": ((1, (14, 15), 2, 32, (7, 7)), {"kernel_size": (7, 7)}),
    "dinat": ((2, (22, 17), 3, 32, (7, 5)), {"kernel_size": (7, 5), "dilation": (3, 2), "scale": 0.3}),
    "one axis": ((2, (40,), 1, 16, ()), {"kernel_size": (9,), "stride": (4,)}),
    "three axes": ((1, (5, 8, 6), 2, 24, ()), {"kernel_size": (3, 4, 2), "is_causal": (1, 0, 0)}),
    "no bias": ((1, (9, 9), 2, 20, ()), {"kernel_size": (3, 3), "stride": (1, 2)}),
}
SEPARATE_CASES = {
    "plain": ((1, (12, 9), (2, 2), (32, 32)), {"kernel_size": (5, 5)}),
    "grouped, wider values": ((2, (8, 10), (6, 2), (16, 40)), {"kernel_size": (3, 4), "dilation": (2, 2)}),
    "additional keys": ((2, (31,), (4, 1), (64, 64), 7), {"kernel_size": (8,), "is_causal": (1,), "stride": (2,)}),
    "three axes": ((1, (4, 6, 7), (2, 1), (8, 12), 3), {"kernel_size": (2, 3, 4), "stride": (1, 3, 2)}),
}


SMALL_MAPS = {
    "shorter on both axes": ((2, (5, 9), 3, 32, (7, 5)), {"kernel_size": (7, 5), "dilation": (3, 2), "scale": 0.3}),
    "shorter on one axis": ((1, (20, 4), 2, 20, (5, 5)), {"kernel_size": (5, 5), "stride": (1, 2)}),
    "one position": ((2, (1,), 1, 16, ()), {"kernel_size": (9,), "stride": (4,), "dilation": (3,)}),
    "three axes": (
        (2, (2, 8, 3), 2, 24, ()),
        {"kernel_size": (3, 4, 2), "dilation": (2, 1, 2), "is_causal": (1, 0, 0)},
    ),
    "large enough": ((2, (14, 15), 2, 32, (7, 7)), {"kernel_size": (7, 7), "dilation": (2, 1)}),
    "many positions": ((3, (40, 13), 2, 32, (7, 7)), {"kernel_size": (7, 7), "dilation": (2, 7)}),
}
"""Sizes and attributes of nodes with padding; but for two, windows reach behind the map."""
