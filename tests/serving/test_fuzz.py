"""Whatever bytes come, the answer is a result or a sentence with a status of 4xx, 501 or 503: never a defect."""

from __future__ import annotations

import json
from typing import Any

import grpc
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Running
from tritonclient.grpc import service_pb2, service_pb2_grpc

from na_deploy.serving.datatypes import NUMPY_NAMES, PROTOCOL_NAMES, array_from_raw, raw_from_array
from na_deploy.serving.errors import RequestError
from na_deploy.serving.json_codec import decode_request, encode_response
from na_deploy.serving.requests import InferResponse, Tensor

MANY = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
SOME = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

NAMES = st.sampled_from(["x", "y", "", "index", "in_FP32"]) | st.text(max_size=5)
TYPES = st.sampled_from([*NUMPY_NAMES, "BYTES", "FP31"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
SHAPES = st.lists(st.integers(-2, 6) | st.integers(), max_size=5) | ANYTHING
NUMBERS = st.lists(st.floats(width=32, allow_nan=False) | st.integers(-300, 300), max_size=12)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "classification", "shared_memory_region", "timeout", "q"]),
    ANYTHING | st.integers(0, 40),
    max_size=3,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES | ANYTHING,
        "datatype": TYPES | ANYTHING,
        "shape": SHAPES,
        "data": NUMBERS | ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
    },
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "id": ANYTHING,
        "inputs": st.lists(ENTRIES, max_size=3) | ANYTHING,
        "outputs": st.lists(ENTRIES, max_size=2) | ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
    },
)
NEAR = st.fixed_dictionaries(
    {"name": st.just("x"), "datatype": st.just("FP32"), "shape": st.just([1, 4]) | SHAPES, "data": NUMBERS}
)
"""Entries that are almost, and at times quite, what the model wants."""


def refused_or_read(body: bytes, length: str | None) -> None:
    refused = None
    try:
        decode_request(body, length)
    except RequestError as error:
        refused = error
    assert refused is None or (refused.status in (400, 501) and str(refused) and "\n" not in str(refused))


@MANY
@given(REQUESTS | st.fixed_dictionaries({"inputs": st.lists(NEAR, max_size=2)}), st.binary(max_size=40), st.booleans())
def test_any_json_is_read_or_refused(content: Any, tail: bytes, split: bool):
    header = json.dumps(content).encode()
    refused_or_read(header + tail, str(len(header)) if split else None)


@SOME
@given(st.binary(max_size=200), st.none() | st.text(max_size=4) | st.integers(-5, 300).map(str))
def test_any_bytes_are_read_or_refused(body: bytes, length: str | None):
    refused_or_read(body, length)


@SOME
@given(st.sampled_from(sorted(NUMPY_NAMES)), st.lists(st.integers(0, 3), max_size=3), st.randoms(use_true_random=False))
def test_a_tensor_survives_both_encodings(datatype: str, shape: list[int], random: Any):
    count = int(np.prod(shape, dtype=int))
    dtype = np.dtype(NUMPY_NAMES[datatype]) if datatype != "BF16" else array_from_raw("t", "BF16", (0,), b"").dtype
    values = [random.randint(0, 1) if datatype == "BOOL" else random.randint(0, 100) for _ in range(count)]
    array = np.array(values).astype(dtype).reshape(shape)
    again = array_from_raw("t", datatype, tuple(shape), bytes(raw_from_array(array)))
    assert again.dtype == array.dtype
    assert np.array_equal(again, array)
    assert PROTOCOL_NAMES[array.dtype.name] == datatype
    if count:
        for binary in (frozenset({"t"}), frozenset()):
            parts, length = encode_response(InferResponse("m", "1", "", (Tensor("t", datatype, array),), binary))
            body = b"".join(parts)
            content = json.loads(body[:length])
            # An answer's outputs have the form of a request's inputs.
            header = json.dumps({"inputs": content["outputs"]}).encode()
            request = decode_request(header + body[length or len(body) :], str(len(header)))
            assert np.array_equal(request.inputs[0].array, array)


@SOME
@given(st.lists(NEAR | ENTRIES, max_size=2), st.sampled_from(["scaling", "table", "small", "types"]))
def test_any_request_to_a_live_server_gets_a_result_or_a_sentence(server: Running, inputs: Any, model: str):
    status, answer = server.infer(model, {"inputs": inputs})
    assert status in (200, 400, 501), answer
    assert ("outputs" if status == 200 else "error") in answer


@SOME
@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#?"), max_size=20),
    st.binary(max_size=60),
)
def test_any_address_gets_an_answer(server: Running, method: str, rest: str, body: bytes):
    for place in (f"/v2/{rest}", f"/v2/models/{rest}", f"/v2/repository/models/{rest}/load", f"/{rest}"):
        status, answer = server.call(place, body or None, method=method)
        assert status in (200, 307, 400, 403, 404, 405, 501), (place, answer)


@SOME
@given(st.data())
def test_any_message_over_grpc_gets_an_answer_or_a_sentence(server: Running, data: Any):
    request = service_pb2.ModelInferRequest(model_name=data.draw(st.sampled_from(["scaling", "table", "", "no"])))
    request.model_version = data.draw(st.sampled_from(["", "1", "x", "-1"]))
    for _ in range(data.draw(st.integers(0, 2))):
        tensor = request.inputs.add(name=data.draw(st.sampled_from(["x", "index", ""])), datatype=data.draw(TYPES))
        tensor.shape.extend(data.draw(st.lists(st.integers(-2, 5), max_size=3)))
        if data.draw(st.booleans()):
            tensor.contents.fp32_contents.extend(data.draw(st.lists(st.floats(width=32), max_size=5)))
        if data.draw(st.booleans()):
            tensor.parameters["binary_data_size"].string_param = "x"
    request.raw_input_contents.extend(data.draw(st.lists(st.binary(max_size=20), max_size=2)))
    request.parameters["timeout"].double_param = data.draw(st.floats())
    if data.draw(st.booleans()):
        del request.parameters["timeout"]
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel_of(server))
    refused = stub.ModelInfer.future(request, timeout=30).exception()
    if refused is not None:
        assert refused.code().name in ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"), refused.details()
        assert refused.details()


_channels: dict[str, grpc.Channel] = {}


def channel_of(server: Running) -> grpc.Channel:
    if server.grpc_address not in _channels:
        _channels[server.grpc_address] = grpc.insecure_channel(server.grpc_address)
    return _channels[server.grpc_address]
