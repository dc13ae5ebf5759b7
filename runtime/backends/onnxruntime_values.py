"""Arrays in and out of ONNX Runtime, bfloat16 too, which its Python interface cannot hand to NumPy."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from na_deploy.model_file.tensors import Array

BFLOAT16 = "tensor(bfloat16)"


def wrap(array: Array) -> Any:
    """Return an ``OrtValue`` on the CPU over an array's memory."""
    from onnxruntime import OrtValue

    array = np.ascontiguousarray(array)
    if array.dtype.name != "bfloat16":
        return OrtValue.ortvalue_from_numpy(array)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), element_type(array.dtype))


def unwrap(value: Any) -> Array:
    """Return a copy of an ``OrtValue``, which may lie on a GPU, as an array."""
    if value.data_type() != BFLOAT16:
        array: Array = value.numpy()
        return array
    import ml_dtypes

    if value.device_name() != "cpu":
        value, on_gpu = empty(value.shape(), np.dtype(ml_dtypes.bfloat16)), value
        value.update_inplace(on_gpu)
    raw = ctypes.string_at(value.data_ptr(), 2 * math.prod(value.shape()))
    return np.frombuffer(raw, ml_dtypes.bfloat16).reshape(value.shape())


def empty(shape: Sequence[int], dtype: np.dtype[Any], device: str = "cpu", number: int = 0) -> Any:
    """Return an ``OrtValue`` whose memory holds nothing yet."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_shape_and_type(list(shape), element_type(dtype), device, number)


def element_type(dtype: np.dtype[Any]) -> Any:
    """Return a type as ``OrtValue`` takes it: NumPy's, or ONNX's number of bfloat16."""
    if dtype.name != "bfloat16":
        return dtype.type
    from onnx import TensorProto

    return int(TensorProto.BFLOAT16)


def run_session(session: Any, inputs: Mapping[str, Array], outputs: Sequence[str], options: Any = None) -> list[Array]:
    """Run an ``InferenceSession`` once.

    Args:
        session: the session.
        inputs: arrays by name.
        outputs: names of the outputs to return.
        options: its ``RunOptions``.
    """
    arguments = (*session.get_inputs(), *session.get_outputs())
    if not any(argument.type == BFLOAT16 for argument in arguments):
        found: list[Array] = session.run(list(outputs), dict(inputs), options)
        return found
    feeds = {name: wrap(array) for name, array in inputs.items()}
    return [unwrap(value) for value in session.run_with_ort_values(list(outputs), feeds, options)]
