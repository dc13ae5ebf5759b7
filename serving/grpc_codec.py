"""Protobuf messages to requests and answers to protobuf messages. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from na_deploy.model_file.tensors import Array
from na_deploy.serving.datatypes import array_from_raw, bytes_array, element_count, element_type, raw_from_array
from na_deploy.serving.errors import InvalidRequestError
from na_deploy.serving.requests import (
    InferRequest,
    InferResponse,
    Tensor,
    check_names,
    check_shape,
    refuse_shared_memory,
    requested_output,
    timeout_of,
)

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Field of ``InferTensorContents`` for each type; half precision exists as raw contents only."""


def decode_request(message: Any) -> InferRequest:
    """Read a ``ModelInferRequest``.

    Raises:
        InvalidRequestError: it is malformed; the message says how.
        UnsupportedError: it asks for something this server does not offer.
    """
    if not message.inputs:
        raise InvalidRequestError("the request has no inputs")
    check_names("inputs", [tensor.name for tensor in message.inputs])
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequestError(f"the request has {len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    inputs = tuple(_input(tensor, raw[index] if raw else None) for index, tensor in enumerate(message.inputs))
    outputs = tuple(requested_output(output.name, parameters_of(output.parameters)) for output in message.outputs)
    check_names("outputs", [output.name for output in outputs])
    return InferRequest(message.id, inputs, None, outputs, True, timeout_of(parameters_of(message.parameters)))


def encode_response(response: InferResponse) -> Any:
    """Write a ``ModelInferResponse``; tensors go as raw contents."""
    message = service_pb2.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    for tensor in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        message.raw_output_contents.append(bytes(raw_from_array(tensor.array)))
    return message


def parameters_of(entries: Mapping[str, Any]) -> dict[str, object]:
    """Return parameters as Python values."""
    found: dict[str, object] = {}
    for name, value in entries.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = None if kind is None else getattr(value, kind)
    return found


def _input(tensor: Any, raw: bytes | None) -> Tensor:
    name, datatype = tensor.name, tensor.datatype
    if not name:
        raise InvalidRequestError("an entry of inputs has no name")
    shape = check_shape(name, list(tensor.shape))
    refuse_shared_memory(name, parameters_of(tensor.parameters))
    if raw is None:
        return Tensor(name, datatype, _from_contents(name, datatype, shape, tensor.contents))
    if tensor.HasField("contents"):
        raise InvalidRequestError(f"input {name!r} has both contents and raw_input_contents")
    return Tensor(name, datatype, array_from_raw(name, datatype, shape, raw))


def _from_contents(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Array:
    dtype = element_type(name, datatype)
    if datatype not in _CONTENTS:
        raise InvalidRequestError(f"input {name!r} is {datatype}, which goes into raw_input_contents only")
    field = _CONTENTS[datatype]
    values = getattr(contents, field)
    others = [used.name for used, _ in contents.ListFields() if used.name != field]
    if others:
        raise InvalidRequestError(f"input {name!r} is {datatype} and has {', '.join(others)}; expected {field}")
    if len(values) != element_count(shape):
        raise InvalidRequestError(f"input {name!r} has {len(values)} elements; its shape is {list(shape)}")
    if datatype == "BYTES":
        return bytes_array(values, shape)
    wide = np.array(values, np.int64 if field == "int_contents" else np.uint64 if field == "uint_contents" else dtype)
    array: Array = wide.astype(dtype)
    if not np.array_equal(array, wide, equal_nan=array.dtype.kind == "f"):
        raise InvalidRequestError(f"input {name!r} holds a number outside the range of {datatype}")
    return array.reshape(shape)
