"""HTTP bodies to requests and answers to HTTP bodies: JSON, and the binary tensor data extension.

Pure functions. A body is JSON alone, or JSON of ``Inference-Header-Content-Length`` bytes followed by the bytes of
those tensors that state ``binary_data_size``. See "HTTP/REST" and "Binary tensor data extension" of the Open Inference
Protocol.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import numpy as np

from na_deploy.model_file.tensors import Array
from na_deploy.serving.datatypes import (
    MOST_TEXTS,
    array_from_raw,
    bytes_array,
    element_count,
    element_type,
    raw_from_array,
)
from na_deploy.serving.errors import InvalidRequestError
from na_deploy.serving.requests import (
    MOST_AXES,
    InferRequest,
    InferResponse,
    Tensor,
    check_names,
    check_shape,
    refuse_shared_memory,
    requested_output,
    timeout_of,
)

HEADER_LENGTH = "inference-header-content-length"

MOST_CONTAINERS = 1_000_000
"""Lists and objects of one request: an empty one is two bytes to send and 56 to keep."""


def decode_request(body: bytes | bytearray | memoryview, header_length: str | None) -> InferRequest:
    """Read an inference request.

    Args:
        body: the whole body.
        header_length: the value of ``Inference-Header-Content-Length``, if given. With 0 the body is the bytes of the
            model's only input.

    Raises:
        InvalidRequestError: it is not a request; the message says what is wrong with it.
        UnsupportedError: it asks for something this server does not offer.
    """
    view = memoryview(body).toreadonly()
    length = _header_length(header_length, len(view))
    if length == 0 and header_length is not None:
        return InferRequest(raw=view, binary_outputs=True)
    content = parse_object(view[:length])
    parameters = _object(content, "parameters", "the request")
    binary_outputs = _given(parameters, "binary_data_output", False)
    if not isinstance(binary_outputs, bool):
        raise InvalidRequestError("the parameter binary_data_output is neither true nor false")
    inputs = _inputs(content, view[length:])
    outputs = tuple(
        requested_output(entry.get("name"), _object(entry, "parameters", "an entry of outputs"))
        for entry in _entries(content, "outputs")
    )
    check_names("outputs", [output.name for output in outputs])
    identifier = _given(content, "id", "")
    if not isinstance(identifier, str):
        raise InvalidRequestError("the request's id is not text")
    return InferRequest(identifier, inputs, None, outputs, binary_outputs, timeout_of(parameters))


def encode_response(response: InferResponse) -> tuple[list[memoryview | bytes], int | None]:
    """Write an answer.

    Returns:
        The parts of the body, and the length of the JSON in front if bytes follow it.

    Raises:
        InvalidRequestError: an output holds what JSON has no word for.
    """
    outputs: list[dict[str, Any]] = []
    parts: list[memoryview | bytes] = []
    for tensor in response.outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.array.shape),
        }
        if tensor.name in response.binary:
            raw = raw_from_array(tensor.array)
            entry["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            entry["data"] = _listed(tensor)
        outputs.append(entry)
    content: dict[str, Any] = {"model_name": response.model, "model_version": response.version, "outputs": outputs}
    if response.id:
        content["id"] = response.id
    header = json.dumps(content, separators=(",", ":")).encode()
    return [header, *parts], len(header) if response.binary else None


def parse_object(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Read a JSON object; NaN and Infinity, which are not JSON, are refused.

    Raises:
        InvalidRequestError: it is not one.
    """
    body = bytes(body)
    if body.count(b"[") + body.count(b"{") > MOST_CONTAINERS:
        raise InvalidRequestError(
            f"the request's JSON has more than {MOST_CONTAINERS} lists and objects; send the tensor as binary data, or "
            "its numbers as one flat list"
        )
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except InvalidRequestError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise InvalidRequestError(f"the request is not JSON ({reason})") from None
    if not isinstance(content, dict):
        raise InvalidRequestError(f"the request is JSON, but not an object: {type(content).__name__}")
    return content


def _given(content: dict[str, Any], key: str, default: Any) -> Any:
    """Return what a key holds; ``null`` is as good as absent, since many clients write what they leave out so."""
    value = content.get(key)
    return default if value is None else value


def _refuse_constant(word: str) -> None:
    raise InvalidRequestError(f"the request holds {word}, which is not JSON; send the tensor as binary data")


def _header_length(text: str | None, total: int) -> int:
    if text is None:
        return total
    if not (text.isascii() and text.isdecimal()) or len(text) > 20 or int(text) > total:
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {text[:40]!r}; expected a number from 0 to the body's length, {total}"
        )
    return int(text)


def _entries(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = _given(content, key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRequestError(f"the request's {key} are not a list of objects")
    return entries


def _object(content: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = _given(content, key, {})
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{key} of {where} is not an object")
    return value


def _inputs(content: dict[str, Any], binary: memoryview) -> tuple[Tensor, ...]:
    entries = _entries(content, "inputs")
    if not entries:
        raise InvalidRequestError("the request has no inputs")
    names = [entry.get("name") for entry in entries]
    if not all(isinstance(name, str) and name for name in names):
        raise InvalidRequestError("an entry of inputs has no name")
    check_names("inputs", [str(name) for name in names])
    tensors, place = [], 0
    for entry in entries:
        tensor, used = _input(entry, binary[place:])
        tensors.append(tensor)
        place += used
    if place != len(binary):
        raise InvalidRequestError(f"{len(binary) - place} bytes follow those that the inputs' binary_data_size states")
    return tuple(tensors)


def _input(entry: dict[str, Any], binary: memoryview) -> tuple[Tensor, int]:
    name, datatype = entry["name"], entry.get("datatype")
    if not isinstance(datatype, str):
        raise InvalidRequestError(f"input {name!r} has no datatype")
    shape = check_shape(name, entry.get("shape"))
    parameters = _object(entry, "parameters", f"input {name!r}")
    refuse_shared_memory(name, parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        if entry.get("data") is None:
            raise InvalidRequestError(f"input {name!r} has neither data nor binary_data_size")
        return Tensor(name, datatype, _array_from_list(name, datatype, shape, entry["data"])), 0
    if entry.get("data") is not None:
        raise InvalidRequestError(f"input {name!r} has both data and binary_data_size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary):
        raise InvalidRequestError(
            f"input {name!r} states binary_data_size {str(size)[:40]}; {len(binary)} bytes are left after the JSON"
        )
    return Tensor(name, datatype, array_from_raw(name, datatype, shape, binary[:size])), size


def _array_from_list(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Array:
    dtype = element_type(name, datatype)
    if not isinstance(data, list):
        raise InvalidRequestError(f"data of input {name!r} is not a list")
    if datatype == "BYTES":
        return _texts(name, shape, data)
    numbers, found = _flattened(name, data)
    if found != shape and (len(found) != 1 or len(numbers) != element_count(shape)):
        have = f"{len(numbers)} numbers" if len(found) == 1 else f"lists of shape {list(found)}"
        raise InvalidRequestError(f"data of input {name!r} has {have}; its shape is {list(shape)}")
    return _typed(name, datatype, dtype, numbers).reshape(shape)


def _flattened(name: str, data: list[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """Return the numbers of nested lists in row-major order, and the lists' shape."""
    sizes = [len(data)]
    while data and type(data[0]) is list:
        width = len(data[0])
        if len(sizes) == MOST_AXES or any(type(row) is not list or len(row) != width for row in data):
            raise InvalidRequestError(f"data of input {name!r} has rows that differ in length or depth")
        sizes.append(width)
        data = list(chain.from_iterable(data))
    return data, tuple(sizes)


def _typed(name: str, datatype: str, dtype: np.dtype[Any], numbers: list[Any]) -> Array:
    kinds = set(map(type, numbers))
    outside = InvalidRequestError(f"data of input {name!r} holds a number outside the range of {datatype}")
    if datatype == "BOOL":
        if not (kinds <= {bool} or (kinds <= {int} and set(numbers) <= {0, 1})):
            raise InvalidRequestError(f"data of input {name!r} is BOOL and takes true and false only")
        return np.array(numbers, np.bool_)
    if "INT" in datatype:
        if not kinds <= {int}:
            raise InvalidRequestError(f"data of input {name!r} is {datatype} and takes whole numbers only")
        limits = np.iinfo(dtype)
        if numbers and (min(numbers) < limits.min or max(numbers) > limits.max):
            raise outside
        return np.array(numbers, dtype)
    if not kinds <= {int, float}:
        raise InvalidRequestError(f"data of input {name!r} is {datatype} and takes numbers only")
    try:
        wide = np.array(numbers, np.float64)
    except OverflowError:
        raise outside from None
    with np.errstate(over="ignore"):
        array: Array = wide.astype(dtype)
    if not np.isfinite(array).all():
        raise outside
    return array


def _texts(name: str, shape: tuple[int, ...], data: list[Any]) -> Array:
    texts: list[bytes] = []
    waiting = [iter(data)]
    while waiting:
        for item in waiting[-1]:
            if isinstance(item, str):
                texts.append(item.encode("utf-8", "surrogatepass"))
            elif isinstance(item, list) and len(waiting) < 64:
                waiting.append(iter(item))
                break
            else:
                raise InvalidRequestError(f"data of input {name!r} is BYTES and takes text only")
        else:
            waiting.pop()
    if len(texts) > MOST_TEXTS:
        raise InvalidRequestError(f"data of input {name!r} has {len(texts)} texts; at most {MOST_TEXTS} are read")
    if len(texts) != element_count(shape):
        raise InvalidRequestError(f"data of input {name!r} has {len(texts)} texts; its shape is {list(shape)}")
    return bytes_array(texts, shape)


def _listed(tensor: Tensor) -> list[Any]:
    flat = tensor.array.reshape(-1)
    if tensor.datatype == "BYTES":
        try:
            return [item.decode() for item in flat]
        except UnicodeDecodeError:
            raise InvalidRequestError(f"output {tensor.name} is not UTF-8 text; ask for it with binary_data") from None
    if tensor.datatype in ("FP16", "BF16", "FP32", "FP64") and not np.isfinite(flat).all():
        raise InvalidRequestError(
            f"output {tensor.name} holds NaN or infinity, which JSON cannot; ask for it with binary_data"
        )
    listed: list[Any] = (flat.astype(np.float32) if tensor.datatype == "BF16" else flat).tolist()
    return listed
