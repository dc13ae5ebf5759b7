"""QuantizeLinear and DequantizeLinear before layers, placed by ``onnxruntime.quantization``; fp8 follows from int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from na_deploy.runtime.quantization.layers import Layer, drop_unused

FP8_LARGEST = 448.0
"""Largest number of E4M3 (https://arxiv.org/abs/2209.05433)."""
LEAST_RANGE = 1e-6
"""Width of the range of an activation that is constant zero, so that its step is not zero."""


def insert(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    ranges: Mapping[str, tuple[float, float]],
    kind: str,
    target: str,
) -> onnx.ModelProto:
    """Return the model with these layers quantized; activations by one step each, weights by one for each channel.

    Args:
        model: prepared by ``opset.lower_opset`` and ``layers.keep_bias_apart``; not changed.
        layers: the layers to quantize.
        ranges: of their sources, and of the results of convolutions.
        kind: one of :data:`~na_deploy.runtime.quantization.choices.FORMATS`.
        target: "tensorrt" rounds what layers read alone; "any" the results of convolutions, too, without which ONNX
            Runtime convolves in float; "cpu" gives activations the whole of uint8, between their smallest and largest.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    unsigned = target == "cpu" and kind == "int8"
    rounds_results = target != "tensorrt" and kind == "int8"
    half = {name for name, code in _types(model).items() if code == TensorProto.FLOAT16}
    bounds = {}
    for name, (low, high) in ranges.items():
        high = high if high - low > LEAST_RANGE else low + LEAST_RANGE
        number = np.float16 if name in half else np.float32
        bounds[name] = TensorData(lowest=np.array(low, number), highest=np.array(high, number))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if unsigned else QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, bounds),
        nodes_to_quantize=[layer.node for layer in layers],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({layer.kind for layer in layers}),
        extra_options={
            "ActivationSymmetric": not unsigned,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"] + ([] if rounds_results else ["Conv"]),
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    if kind == "fp8":
        _to_fp8(result, model)
    _state_shapes(result)
    drop_unused(result)
    return result


def _types(model: onnx.ModelProto) -> dict[str, int]:
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _state_shapes(model: onnx.ModelProto) -> None:
    """State type and shape of every rounded value: those of the value itself."""
    graph = model.graph
    known = {value.name: value.type.tensor_type for value in [*graph.value_info, *graph.input, *graph.output]}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source, scale, zero = node.input[0], tensors[node.input[1]], tensors[node.input[2]]
        code = zero.data_type if node.op_type == "QuantizeLinear" else scale.data_type
        if source in known and known[source].HasField("shape"):
            value = onnx.ValueInfoProto(name=node.output[0])
            value.type.tensor_type.elem_type = code
            value.type.tensor_type.shape.CopyFrom(known[source].shape)
        elif source in tensors:
            value = onnx.helper.make_tensor_value_info(node.output[0], code, tensors[source].dims)
        else:
            continue
        if node.output[0] not in known:
            graph.value_info.append(value)
            known[node.output[0]] = value.type.tensor_type


def _to_fp8(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Turn int8 steps into E4M3's, in place: the largest magnitude becomes 448, and weights are rounded anew."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    done = set[str]()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source, scale, zero = node.input[:3]
        if scale not in done:
            done.add(scale)
            steps = numpy_helper.to_array(tensors[scale])
            number = steps.dtype
            wide = np.maximum(steps.astype(np.float64) * (127 / FP8_LARGEST), float(np.finfo(number).tiny))
            tensors[scale].CopyFrom(numpy_helper.from_array(wide.astype(number), scale))
        if zero not in done:
            done.add(zero)
            tensors[zero].CopyFrom(_fp8(zero, np.zeros(tuple(tensors[zero].dims), np.float32)))
        if source in tensors and source not in done:
            done.add(source)
            values = numpy_helper.to_array(weights[source.removesuffix("_quantized")]).astype(np.float32)
            steps = numpy_helper.to_array(tensors[scale]).astype(np.float32)
            axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
            if steps.ndim:
                steps = steps.reshape([-1 if place == axis % values.ndim else 1 for place in range(values.ndim)])
            tensors[source].CopyFrom(_fp8(source, values / steps))


def _fp8(name: str, values: np.ndarray) -> TensorProto:
    kept = np.clip(values, -FP8_LARGEST, FP8_LARGEST).astype(ml_dtypes.float8_e4m3fn)
    return TensorProto(name=name, data_type=TensorProto.FLOAT8E4M3FN, dims=values.shape, raw_data=kept.tobytes())
