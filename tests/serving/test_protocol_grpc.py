"""Every call of tritonclient's gRPC client works, or is refused in a sentence; the asynchronous clients too."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as client
import tritonclient.grpc.aio as aio
import tritonclient.http.aio as http_aio
from running import Running
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

NUMPY = {
    "BOOL": np.dtype(bool),
    "UINT8": np.dtype("uint8"),
    "UINT16": np.dtype("uint16"),
    "UINT32": np.dtype("uint32"),
    "UINT64": np.dtype("uint64"),
    "INT8": np.dtype("int8"),
    "INT16": np.dtype("int16"),
    "INT32": np.dtype("int32"),
    "INT64": np.dtype("int64"),
    "FP16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("float32"),
    "FP64": np.dtype("float64"),
}


@pytest.fixture(scope="module")
def triton(server: Running) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(server.grpc_address) as made:
        yield made


def values(name: str, batch: int = 2) -> np.ndarray:
    random = np.random.default_rng(len(name))
    if name == "BOOL":
        return random.integers(0, 2, (batch, 3)).astype(bool)
    numbers = random.normal(scale=40, size=(batch, 3))
    return (np.abs(numbers) if name.startswith("U") else numbers).astype(NUMPY[name])


def all_inputs() -> list[client.InferInput]:
    return [client.InferInput(f"in_{name}", [2, 3], name).set_data_from_numpy(values(name)) for name in NUMPY]


def scaling_input(x: np.ndarray) -> client.InferInput:
    return client.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)


X = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


def test_health_metadata_and_configuration(triton: client.InferenceServerClient):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("small")
    assert not triton.is_model_ready("unknown")
    assert not triton.is_model_ready("scaling", "9")
    assert triton.get_server_metadata().name == "na-deploy"
    metadata = triton.get_model_metadata("small")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [
        ("image", "FP32", [-1, 3, 32, 32])
    ]
    config = triton.get_model_config("small").config
    assert config.max_batch_size == 8
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 100
    assert list(config.input[0].dims) == [3, 32, 32]


@pytest.mark.parametrize("name", list(NUMPY))
def test_raw_tensors_of_every_type_come_back_as_they_went(triton: client.InferenceServerClient, name: str):
    result = triton.infer("types", all_inputs(), outputs=[client.InferRequestedOutput(f"out_{name}")])
    returned = result.as_numpy(f"out_{name}")
    assert returned.dtype == NUMPY[name]
    assert np.array_equal(returned, values(name))


@pytest.mark.parametrize(
    ("datatype", "field", "numbers"),
    [
        ("BOOL", "bool_contents", [True, False, True]),
        ("INT8", "int_contents", [-128, 0, 127]),
        ("UINT16", "uint_contents", [0, 1, 65535]),
        ("INT64", "int64_contents", [-(2**63), 0, 2**63 - 1]),
        ("UINT64", "uint64_contents", [0, 1, 2**64 - 1]),
        ("FP32", "fp32_contents", [1.5, -2.0, 0.25]),
        ("FP64", "fp64_contents", [1e300, -2.0, 0.1]),
    ],
)
def test_typed_contents_are_read(server: Running, datatype: str, field: str, numbers: list[object]):
    request = typed_request(datatype, {field: numbers})
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    returned = np.frombuffer(answer.raw_output_contents[0], NUMPY[datatype])
    assert returned.tolist() == numbers


def typed_request(datatype: str, contents: dict[str, list[object]]) -> service_pb2.ModelInferRequest:
    """Return a request whose tensor of one type is typed contents, and all others too."""
    request = service_pb2.ModelInferRequest(model_name="numbers")
    for name in FIELDS:
        tensor = request.inputs.add(name=f"in_{name}", datatype=name, shape=[1, 3])
        given = contents if name == datatype else {FIELDS[name]: np.zeros(3, NUMPY[name]).tolist()}
        for field, numbers in given.items():
            getattr(tensor.contents, field).extend(numbers)
    request.outputs.add(name=f"out_{datatype}")
    return request


FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r.inputs[0].contents.fp32_contents.append(1.0), "has 5 elements; its shape is"),
        (lambda r: r.inputs[0].contents.int_contents.append(1), "has int_contents; expected fp32_contents"),
        (lambda r: r.raw_input_contents.append(b"1234"), "has both contents and raw_input_contents"),
        (lambda r: r.raw_input_contents.extend([b"", b""]), "has 2 raw_input_contents for 1 inputs"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "goes into raw_input_contents only"),
        (lambda r: setattr(r.inputs[0], "datatype", "FLOAT"), "has the datatype 'FLOAT'; expected one of BOOL"),
        (lambda r: setattr(r.inputs[0], "name", ""), "an entry of inputs has no name"),
        (lambda r: setattr(r.inputs[0], "name", "z"), "no input named z"),
        (lambda r: r.inputs[0].shape.append(-1), "has the size -1"),
        (lambda r: r.inputs.add(name="x"), "names 'x' twice"),
        (lambda r: r.outputs.add(name="z"), "has no output 'z'; it has y"),
        (lambda r: r.ClearField("inputs"), "has no inputs"),
    ],
)
def test_malformed_messages_are_refused_in_a_sentence(server: Running, change, sentence: str):
    request = service_pb2.ModelInferRequest(model_name="scaling")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert np.frombuffer(stub.ModelInfer(request).raw_output_contents[0], np.float32).tolist() == [3, 6, 9, 12]
        change(request)
        with pytest.raises(grpc.RpcError) as failure:
            stub.ModelInfer(request)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in failure.value.details()


def test_classes_versions_and_ids(triton: client.InferenceServerClient):
    wanted = client.InferRequestedOutput("y", class_count=2)
    result = triton.infer("scaling", [scaling_input(X)], model_version="1", outputs=[wanted], request_id="nine")
    assert result.get_response().id == "nine"
    assert result.get_response().model_version == "1"
    assert [int(text.split(b":")[1]) for text in result.as_numpy("y")[0]] == np.argsort(-X[0])[:2].tolist()


def test_statistics_and_the_index(triton: client.InferenceServerClient):
    triton.infer("scaling", [scaling_input(X)], model_version="1")
    (model,) = triton.get_inference_statistics("scaling", "1").model_stats
    assert model.inference_stats.success.count >= 1
    assert model.inference_count >= 2
    assert model.batch_stats[0].compute_infer.ns > 0
    states = {(each.name, each.version): each.state for each in triton.get_model_repository_index().models}
    assert states[("scaling", "2")] == "READY"


@pytest.mark.parametrize(
    ("call", "status", "sentence"),
    [
        (lambda c: c.load_model("small"), "PERMISSION_DENIED", "lets no client load"),
        (lambda c: c.unload_model("small"), "PERMISSION_DENIED", "lets no client load"),
        (lambda c: c.get_trace_settings(), "UNIMPLEMENTED", "tracing is not offered"),
        (lambda c: c.update_trace_settings("small", {"trace_level": "OFF"}), "UNIMPLEMENTED", "tracing"),
        (lambda c: c.get_log_settings(), "UNIMPLEMENTED", "log settings"),
        (lambda c: c.update_log_settings({"log_verbose_level": 1}), "UNIMPLEMENTED", "log settings"),
        (lambda c: c.get_system_shared_memory_status(), "UNIMPLEMENTED", "shared memory"),
        (lambda c: c.register_system_shared_memory("r", "/k", 8), "UNIMPLEMENTED", "shared memory"),
        (lambda c: c.unregister_system_shared_memory(), "UNIMPLEMENTED", "shared memory"),
        (lambda c: c.get_cuda_shared_memory_status(), "UNIMPLEMENTED", "shared memory"),
        (lambda c: c.register_cuda_shared_memory("r", b"aGk=", 0, 8), "UNIMPLEMENTED", "shared memory"),
        (lambda c: c.unregister_cuda_shared_memory(), "UNIMPLEMENTED", "shared memory"),
        (lambda c: c.get_model_metadata("unknown"), "NOT_FOUND", "no model 'unknown'"),
        (lambda c: c.get_model_config("small", "x"), "INVALID_ARGUMENT", "is not a number"),
        (lambda c: c.get_inference_statistics("unknown"), "NOT_FOUND", "no model 'unknown'"),
        (lambda c: c.infer("unknown", [scaling_input(X)]), "NOT_FOUND", "no model 'unknown'"),
        (lambda c: c.infer("scaling", [scaling_input(X)], sequence_id=3), "UNIMPLEMENTED", "belongs to a sequence"),
        (lambda c: c.infer("scaling", [scaling_input(X[:, :3])]), "INVALID_ARGUMENT", "axis 1 is 3, not 4"),
    ],
)
def test_what_is_not_offered_is_refused_in_a_sentence(triton, call, status: str, sentence: str):
    with pytest.raises(InferenceServerException, match=sentence) as failure:
        call(triton)
    assert status in failure.value.status()


def test_a_stream_answers_in_order_and_tells_errors_apart(triton: client.InferenceServerClient):
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    triton.start_stream(lambda result, error: answers.put((result, error)))
    try:
        for index in range(6):
            width = 3 if index == 3 else 4
            triton.async_stream_infer("scaling", [scaling_input(X[:, :width])], request_id=str(index))
        found = [answers.get(timeout=30) for _ in range(6)]
    finally:
        triton.stop_stream()
    for index, (result, error) in enumerate(found):
        if index == 3:
            assert "axis 1 is 3, not 4" in str(error)
        else:
            assert error is None
            assert result.get_response().id == str(index)  # type: ignore[attr-defined]
            assert np.array_equal(result.as_numpy("y"), 3 * X)  # type: ignore[attr-defined]


def test_asynchronous_clients_of_both_protocols(server: Running):
    async def ask() -> list[np.ndarray]:
        found = []
        async with aio.InferenceServerClient(server.grpc_address) as one:
            assert await one.is_server_ready()
            results = await asyncio.gather(*(one.infer("scaling", [scaling_input(X)]) for _ in range(20)))
            found += [result.as_numpy("y") for result in results]
        async with http_aio.InferenceServerClient(server.address) as two:
            tensor = http_aio.InferInput("x", list(X.shape), "FP32")
            tensor.set_data_from_numpy(X)
            results = await asyncio.gather(*(two.infer("scaling", [tensor]) for _ in range(20)))
            found += [result.as_numpy("y") for result in results]
        return found

    assert all(np.array_equal(array, 3 * X) for array in asyncio.run(ask()))


def test_a_cancelled_call_does_not_wait(server: Running):
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="slow")
        request.inputs.add(name="turns", datatype="INT64", shape=[1]).contents.int64_contents.append(40_000)
        calls = [stub.ModelInfer.future(request) for _ in range(5)]
        for call in calls[1:]:
            call.cancel()
        assert calls[0].result(timeout=30).outputs[0].name == "last"
        assert all(call.cancelled() for call in calls[1:])
