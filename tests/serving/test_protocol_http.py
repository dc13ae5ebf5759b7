"""Every call of tritonclient's HTTP client works, or is refused in a sentence."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as client
from running import Running
from served_models import TYPES
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import na_deploy
from na_deploy.runtime.native_libraries import onnxruntime_library


@pytest.fixture(scope="module")
def triton(server: Running) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(server.address) as made:
        yield made


def arrays(batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values of every element type."""
    random = np.random.default_rng(seed)
    found = {}
    for name in TYPES:
        dtype = np.dtype(ml_dtypes.bfloat16) if name == "BF16" else np.dtype(NUMPY[name])
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            found[name] = random.integers(limits.min, limits.max, (batch, 3), dtype=dtype, endpoint=True)
        elif dtype.kind == "b":
            found[name] = random.integers(0, 2, (batch, 3)).astype(bool)
        else:
            found[name] = random.normal(size=(batch, 3)).astype(dtype)
    return found


NUMPY = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"} | {
    f"{sign.upper()}INT{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def inputs_of(values: dict[str, np.ndarray], binary: bool) -> list[client.InferInput]:
    listed = []
    for name, array in values.items():
        tensor = client.InferInput(f"in_{name}", list(array.shape), name)
        listed.append(tensor.set_data_from_numpy(array, binary_data=binary))
    return listed


def test_health_and_metadata(triton: client.InferenceServerClient):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("small")
    assert triton.is_model_ready("scaling", "1")
    assert not triton.is_model_ready("scaling", "7")
    assert not triton.is_model_ready("unknown")
    assert triton.get_server_metadata()["name"] == "na-deploy"
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    metadata = triton.get_model_metadata("small")
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 32, 32]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert triton.get_model_metadata("scaling")["versions"] == ["1", "2"]


def test_configuration_says_how_requests_share_runs(triton: client.InferenceServerClient):
    config = triton.get_model_config("small")
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [3, 32, 32]}]
    assert "dynamic_batching" in config
    assert triton.get_model_config("slow")["max_batch_size"] == 0
    assert "dynamic_batching" not in triton.get_model_config("slow")


@pytest.mark.parametrize("name", list(TYPES))
def test_binary_tensors_of_every_type_come_back_as_they_went(triton: client.InferenceServerClient, name: str):
    values = arrays()
    result = triton.infer("types", inputs_of(values, binary=True), outputs=[client.InferRequestedOutput(f"out_{name}")])
    returned = result.as_numpy(f"out_{name}")
    assert returned.dtype == values[name].dtype
    assert np.array_equal(returned, values[name])
    assert [output["name"] for output in result.get_response()["outputs"]] == [f"out_{name}"]


def test_json_tensors_of_every_type_come_back_as_they_went(server: Running):
    values = arrays(seed=1)
    request = {
        "id": "seven",
        "inputs": [
            {
                "name": f"in_{name}",
                "datatype": name,
                "shape": [2, 3],
                "data": array.astype(float_or_own(array)).tolist(),
            }
            for name, array in values.items()
        ],
    }
    status, answer = server.infer("types", request)
    assert status == 200, answer
    assert answer["id"] == "seven"
    for output in answer["outputs"]:
        sent = values[output["datatype"]]
        returned = np.array(output["data"], dtype=sent.dtype if sent.dtype.kind in "iub" else np.float64)
        assert np.array_equal(returned.reshape(2, 3), sent.astype(returned.dtype)), output["datatype"]


def float_or_own(array: np.ndarray) -> type:
    return np.float64 if array.dtype.kind not in "iub" else array.dtype


def test_results_are_the_session_s(triton: client.InferenceServerClient, server: Running, repository):
    image = np.random.default_rng(3).normal(size=(3, 3, 32, 32)).astype(np.float32)
    with na_deploy.load(repository / "small.onnx", threads=1) as session:
        expected = session.run(image)["logits"]
    tensor = client.InferInput("image", list(image.shape), np_to_triton_dtype(image.dtype))
    for binary in (True, False):
        result = triton.infer("small", [tensor.set_data_from_numpy(image, binary_data=binary)], request_id="r")
        assert np.allclose(result.as_numpy("logits"), expected, atol=1e-5)
        assert result.get_response()["id"] == "r"
        assert result.get_response()["model_version"] == "1"


def test_outputs_in_json_and_in_bytes_are_the_same(triton: client.InferenceServerClient):
    inputs = inputs_of(arrays(seed=2), binary=True)
    wanted = [client.InferRequestedOutput("out_FP32", binary_data=flag) for flag in (True, False)]
    bytes_, text = (triton.infer("types", inputs, outputs=[output]).as_numpy("out_FP32") for output in wanted)
    assert np.array_equal(bytes_, text)


def test_versions_are_told_apart_and_the_newest_is_the_default(triton: client.InferenceServerClient):
    x = np.array([[1, 2, 3, 4]], np.float32)
    tensor = client.InferInput("x", [1, 4], "FP32").set_data_from_numpy(x)
    assert np.array_equal(triton.infer("scaling", [tensor], model_version="1").as_numpy("y"), 2 * x)
    assert np.array_equal(triton.infer("scaling", [tensor], model_version="2").as_numpy("y"), 3 * x)
    assert np.array_equal(triton.infer("scaling", [tensor]).as_numpy("y"), 3 * x)
    with pytest.raises(InferenceServerException, match=r"no version 5 of the model scaling; served: 1, 2"):
        triton.infer("scaling", [tensor], model_version="5")


def test_classes_come_as_text(triton: client.InferenceServerClient):
    image = np.random.default_rng(4).normal(size=(2, 3, 32, 32)).astype(np.float32)
    tensor = client.InferInput("image", [2, 3, 32, 32], "FP32").set_data_from_numpy(image)
    logits = triton.infer("small", [tensor]).as_numpy("logits")
    for binary in (True, False):
        wanted = client.InferRequestedOutput("logits", binary_data=binary, class_count=3)
        classes = triton.infer("small", [tensor], outputs=[wanted]).as_numpy("logits")
        assert classes.shape == (2, 3)
        for row, numbers in zip(classes, logits, strict=True):
            for text, index in zip(row, np.argsort(-numbers)[:3], strict=True):
                value, number, label = (text.decode() if binary else text).split(":")
                assert int(number) == index
                assert float(value) == pytest.approx(numbers[index], abs=1e-4)
                assert label == f"kind <{index}>"


@pytest.mark.parametrize("method", ["gzip", "deflate"])
def test_compressed_requests_and_answers(triton: client.InferenceServerClient, method: str):
    x = np.random.default_rng(5).normal(size=(8, 4)).astype(np.float32)
    tensor = client.InferInput("x", [8, 4], "FP32").set_data_from_numpy(x)
    result = triton.infer(
        "scaling", [tensor], request_compression_algorithm=method, response_compression_algorithm=method
    )
    assert np.array_equal(result.as_numpy("y"), 3 * x)
    values = arrays(batch=8, seed=6)
    result = triton.infer("types", inputs_of(values, binary=True), response_compression_algorithm=method)
    assert np.array_equal(result.as_numpy("out_FP64"), values["FP64"])


def test_a_long_answer_is_compressed_where_the_client_asks(server: Running):
    request = json.dumps({"inputs": [{"name": "image", "datatype": "FP32", "shape": [8, 3, 32, 32], "data": NUMBERS}]})
    for name, unpack in (("gzip", gzip.decompress), ("deflate", zlib.decompress)):
        status, body = server.call("/v2/models/small/infer", request.encode(), {"Accept-Encoding": name})
        assert status == 200
        assert json.loads(unpack(body))["outputs"][0]["shape"] == [8, 10]


NUMBERS = np.random.default_rng(7).normal(size=8 * 3 * 32 * 32).round(3).tolist()


def test_bytes_alone_are_the_only_input(server: Running):
    x = np.array([[4, 3, 2, 1]], np.float32)
    status, body = server.infer("scaling", x.tobytes(), {"Inference-Header-Content-Length": "0"})
    assert status == 200
    assert np.array_equal(np.frombuffer(body[-16:], np.float32), 3 * x[0])


def test_async_calls(triton: client.InferenceServerClient):
    x = np.random.default_rng(8).normal(size=(1, 4)).astype(np.float32)
    tensor = client.InferInput("x", [1, 4], "FP32").set_data_from_numpy(x)
    pending = [triton.async_infer("scaling", [tensor]) for _ in range(8)]
    assert all(np.array_equal(one.get_result(timeout=30).as_numpy("y"), 3 * x) for one in pending)


def test_statistics_count_what_was_done(triton: client.InferenceServerClient):
    def successes() -> int:
        (model,) = triton.get_inference_statistics("table")["model_stats"]
        return int(model["inference_stats"]["success"]["count"])

    before = successes()
    index = client.InferInput("index", [2], "INT64").set_data_from_numpy(np.array([1, 3]))
    assert np.array_equal(triton.infer("table", [index]).as_numpy("row"), [[2, 3], [6, 7]])
    assert successes() == before + 1
    names = {model["name"] for model in triton.get_inference_statistics()["model_stats"]}
    assert names == {"small", "types", "numbers", "table", "slow", "scaling"}


def test_the_index_lists_every_version(triton: client.InferenceServerClient):
    found = {(entry["name"], entry["version"], entry["state"]) for entry in triton.get_model_repository_index()}
    assert {("scaling", "1", "READY"), ("scaling", "2", "READY"), ("small", "1", "READY")} <= found


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: c.load_model("small"), "lets no client load or unload"),
        (lambda c: c.unload_model("small"), "lets no client load or unload"),
        (lambda c: c.get_trace_settings(), "tracing is not offered"),
        (lambda c: c.update_trace_settings("small", {"trace_level": "OFF"}), "tracing is not offered"),
        (lambda c: c.get_log_settings(), "log settings cannot be changed"),
        (lambda c: c.update_log_settings({"log_verbose_level": 1}), "log settings cannot be changed"),
        (lambda c: c.get_system_shared_memory_status(), "shared memory is not supported"),
        (lambda c: c.register_system_shared_memory("r", "/k", 8), "shared memory is not supported"),
        (lambda c: c.unregister_system_shared_memory("r"), "shared memory is not supported"),
        (lambda c: c.unregister_system_shared_memory(), "shared memory is not supported"),
        (lambda c: c.get_cuda_shared_memory_status(), "shared memory is not supported"),
        (lambda c: c.register_cuda_shared_memory("r", b"aGk=", 0, 8), "shared memory is not supported"),
        (lambda c: c.unregister_cuda_shared_memory(), "shared memory is not supported"),
        (lambda c: c.get_model_metadata("unknown"), "there is no model 'unknown'; served: "),
        (lambda c: c.get_model_config("unknown"), "there is no model 'unknown'"),
        (lambda c: c.get_inference_statistics("unknown"), "there is no model 'unknown'"),
        (lambda c: c.get_model_metadata("small", "x"), "the version 'x' is not a number"),
    ],
)
def test_what_is_not_offered_is_refused_in_a_sentence(triton: client.InferenceServerClient, call, sentence: str):
    with pytest.raises(InferenceServerException, match=sentence):
        call(triton)


def test_tensors_in_shared_memory_and_sequences_are_refused(triton: client.InferenceServerClient):
    tensor = client.InferInput("x", [1, 4], "FP32")
    tensor.set_shared_memory("region", 16)
    with pytest.raises(InferenceServerException, match="lies in shared memory, which is not supported"):
        triton.infer("scaling", [tensor])
    given = client.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32))
    with pytest.raises(InferenceServerException, match="belongs to a sequence"):
        triton.infer("scaling", [given], sequence_id=7, sequence_start=True)
    output = client.InferRequestedOutput("y")
    output.set_shared_memory("region", 16)
    with pytest.raises(InferenceServerException, match="lies in shared memory"):
        triton.infer("scaling", [given], outputs=[output])


def test_text_tensors_are_read_and_refused_by_models_of_numbers(triton: client.InferenceServerClient):
    words = np.array([["a", "ü", "", "dd"]], object)
    for binary in (True, False):
        tensor = client.InferInput("x", [1, 4], "BYTES").set_data_from_numpy(words, binary_data=binary)
        with pytest.raises(InferenceServerException, match="input x has datatype BYTES; scaling takes FP32"):
            triton.infer("scaling", [tensor])


def test_metrics_name_the_backend_and_count(server: Running):
    _, text = server.call("/metrics")
    lines = text.decode()
    attention = "function bodies" if onnxruntime_library() is None else "operator library"
    assert (
        f'na_deploy_model{{attention="{attention}",backend="onnxruntime",device="CPU",model="small",version="1"}} 1.0'
        in lines
    )
    assert 'na_deploy_requests_total{model="scaling",outcome="ok",protocol="http"}' in lines
    assert "na_deploy_queue_seconds_bucket" in lines
    assert "na_deploy_batch_items_bucket" in lines


def test_the_page_s_list_says_which_models_take_images(server: Running):
    status, models = server.call("/page/models")
    assert status == 200
    assert next(model for model in models if model["name"] == "small")["answers"] == "classes"
    assert next(model for model in models if model["name"] == "types")["answers"] == ""
