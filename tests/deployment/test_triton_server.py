"""Repositories of `package` on NVIDIA Triton's real core: the python backend as it is, onnxruntime through a stand-in.

There is no GPU here and the server's wheel has no tensorrt backend: repositories for that are checked, not served.
"""

from __future__ import annotations

import io
import itertools
import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from detectors import detector
from onnx import TensorProto, helper
from PIL import Image
from segmenters import colour_picture, segmenter, squared
from serving_client import CHECKS, ServedModel, connect, items
from small_models import small_model
from triton_server import Server, triton_server
from tritonclient.utils import InferenceServerException

import na_deploy
from na_deploy.deployment import PackageOptions, check_repository, package
from na_deploy.deployment.protobuf import CONFIG, parse, read, to_text
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import decode_image, prepare
from na_deploy.runtime.native_libraries import onnxruntime_library
from na_deploy.runtime.results.segments import Segmentation

pytestmark = pytest.mark.triton

LABELS = {index: f"kind of thing {index}" for index in range(10)}
PREPROCESSING = Preprocessing(size=(32, 32), resize=36)
PROPERTIES = ModelMetadata("nat_mini", num_classes=10, preprocessing=PREPROCESSING, labels=LABELS).to_props()
PACKAGED = {
    # name: (batch, version's seeds, options)
    "python_free": ("batch", [0], PackageOptions(backend="python", delay_ms=20, preprocess=True)),
    "python_fixed": (1, [0], PackageOptions(backend="python", threads=1)),
    "onnx_free": ("batch", [0], PackageOptions(delay_ms=20, threads=1, preprocess=True)),
    "onnx_fixed": (1, [0], PackageOptions(labels=None)),
    "two_versions": ("batch", [0, 1], PackageOptions(backend="python", versions="all")),
    "limited": ("batch", [0], PackageOptions(backend="python", queue=2, delay_ms=300, timeout_ms=5000)),
    "cached": ("batch", [0], PackageOptions(backend="python", cache=True, device="gpu")),
}
SEGMENTERS = (
    ("free_sizes", "semantic", {}, "python"),
    ("things", "detection", {"batch": "batch", "height": 64, "width": 64, "preprocessing": squared(64)}, "onnxruntime"),
    ("things_boxed", "detection", {"batch": "batch", "masks": False}, "python"),
    ("square", "panoptic", {"batch": "batch", "height": 64, "width": 64, "preprocessing": squared(64)}, "onnxruntime"),
)
BATCHED = {"python_free": True, "onnx_free": True, "python_fixed": False, "onnx_fixed": False}


@dataclass(frozen=True)
class Served:
    server: Server
    repository: Path
    models: dict[str, Path]

    def connect(self, kind: str) -> Any:
        return connect(kind, getattr(self.server, kind))

    def model(self, name: str, seed: int = 0) -> ServedModel:
        batch = PACKAGED[name][0]

        def expected(batch_of_items: np.ndarray) -> np.ndarray:
            with na_deploy.load(self.models[f"{name}.{seed}"]) as session:
                return session.run(batch_of_items)["logits"]

        return ServedModel(
            name, "image", (3, 32, 32), "logits", expected, 8 if batch != 1 else 0, BATCHED.get(name, False)
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("triton")
    repository, models = folder / "repository", {}
    for name, (batch, seeds, options) in PACKAGED.items():
        for seed in seeds:
            path = models[f"{name}.{seed}"] = folder / str(seed) / f"{name}.onnx"
            path.parent.mkdir(exist_ok=True)
            onnx.save(small_model(batch=batch, properties=PROPERTIES, seed=seed), path)
            package([path], repository, _at(options, repository))
    bf16 = folder / "half.onnx"
    onnx.save(_bfloat16_model(), bf16)
    package([bf16], repository, PackageOptions(backend="python"))
    for name, task, sizes, backend in SEGMENTERS:
        path = models[name] = folder / f"{name}.onnx"
        onnx.save(detector(**sizes) if task == "detection" else segmenter(task, **sizes), path)
        package([path], repository, _at(PackageOptions(backend=backend, preprocess=True), repository))
    assert check_repository(repository) == []
    arguments = ["--cache-config=local,size=1048576", "--model-control-mode=explicit", "--load-model=*"]
    with triton_server([repository], folder, arguments) as server:
        yield Served(server, repository, models)


def _at(options: PackageOptions, repository: Path) -> PackageOptions:
    return replace(options, mount=str(repository))


def _bfloat16_model() -> onnx.ModelProto:
    shape = ["batch", 4]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Neg", ["wide"], ["negative"]),
            helper.make_node("Cast", ["negative"], ["y"], to=TensorProto.BFLOAT16),
        ],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("kind", ["http", "grpc"])
@pytest.mark.parametrize("name", list(BATCHED))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_triton_answers_as_every_server_of_the_protocol_must(served: Served, check, name: str, kind: str) -> None:
    with served.connect(kind) as client:
        check(client, served.model(name))


def _photograph(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["http", "grpc"])
@pytest.mark.parametrize("name", ["python_free", "onnx_free"])
def test_the_ensemble_classifies_image_files_as_the_model_does(served: Served, name: str, kind: str) -> None:
    files = [_photograph(seed) for seed in range(3)]
    images = np.concatenate([prepare(decode_image(file), PREPROCESSING) for file in files])
    with served.connect(kind) as client:
        given = np.array([[file] for file in files], object)
        answer = client.infer(f"{name}_from_image", {"image_bytes": given}).as_numpy("logits")
    np.testing.assert_allclose(answer, served.model(name).expected(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["http", "grpc"])
@pytest.mark.parametrize("name", [entry[0] for entry in SEGMENTERS])
def test_a_segmenter_answers_image_files_as_a_session_does(served: Served, name: str, kind: str) -> None:
    pictures = [colour_picture(120, 90), colour_picture(50, 77)]
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "png")
        files.append(buffer.getvalue())
    with served.connect(kind) as client:
        answer = client.infer(f"{name}_from_image", {"image_bytes": np.array(files, object)})
        contents = [json.loads(text) for text in answer.as_numpy("segments")]
        files = [] if name == "things_boxed" else answer.as_numpy("ids")
        ids = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    with na_deploy.load(served.models[name]) as session:
        for picture, content, own in itertools.zip_longest(pictures, contents, ids):
            expected = session.predict(picture)
            assert isinstance(expected, Segmentation)
            assert content == {
                "task": expected.task,
                "height": picture.height,
                "width": picture.width,
                "segments": expected.to_coco(session.metadata.labels),
            }
            assert (own is None) == (not expected.has_masks)
            assert own is None or np.array_equal(own, expected.ids)
    with served.connect(kind) as client, pytest.raises(InferenceServerException, match="not an image"):
        client.infer(f"{name}_from_image", {"image_bytes": np.array([b"nothing"], object)})


def test_the_ensemble_names_classes_by_the_models_labels(served: Served) -> None:
    image = prepare(decode_image(_photograph()), PREPROCESSING)
    best = int(served.model("python_free").expected(image).argmax())
    with served.connect("http") as client:
        tensor = client.module.InferInput("image_bytes", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[_photograph()]], object))
        wanted = client.module.InferRequestedOutput("logits", class_count=2)
        answer = client.raw.infer("python_free_from_image", [tensor], outputs=[wanted]).as_numpy("logits")
    assert answer[0][0].decode().endswith(f":{best}:{LABELS[best]}")


@pytest.mark.parametrize("damage", [b"not an image", _photograph()[:300]], ids=["junk", "truncated"])
def test_a_damaged_image_is_refused_and_the_next_one_answered(served: Served, damage: bytes) -> None:
    with served.connect("http") as client:
        with pytest.raises(InferenceServerException, match="image"):
            client.infer("python_free_from_image", {"image_bytes": np.array([[damage]], object)})
        good = np.array([[_photograph()]], object)
        assert client.infer("python_free_from_image", {"image_bytes": good}).as_numpy("logits").shape == (1, 10)


def test_two_versions_are_served_each_with_its_own_weights(served: Served) -> None:
    given = items(served.model("two_versions"), 2)
    with served.connect("grpc") as client:
        for version, seed in (("1", 0), ("2", 1)):
            answer = client.infer("two_versions", {"image": given}, model_version=version).as_numpy("logits")
            np.testing.assert_allclose(answer, served.model("two_versions", seed).expected(given), rtol=1e-4, atol=1e-5)


def test_a_bfloat16_model_is_served_as_float32(served: Served) -> None:
    given = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    with served.connect("http") as client:
        answer = client.infer("half", {"x": given}).as_numpy("y")
    np.testing.assert_array_equal(answer, -given.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_the_response_cache_answers_a_repeated_request(served: Served) -> None:
    given = items(served.model("cached"), 1, seed=77)
    with served.connect("http") as client:
        first, second = (client.infer("cached", {"image": given}).as_numpy("logits") for _ in range(2))
        (statistics,) = client.ask("get_inference_statistics", "cached")["model_stats"]
    np.testing.assert_array_equal(first, second)
    assert statistics["inference_stats"]["cache_hit"]["count"] >= 1


def test_requests_beyond_the_queue_are_refused_at_once(served: Served) -> None:
    model = served.model("limited")

    def ask(seed: int) -> tuple[str, float]:
        given, started = items(model, 1, seed=seed), time.perf_counter()
        with served.connect("grpc") as client:
            try:
                answer = client.infer("limited", {"image": given}).as_numpy("logits")
            except InferenceServerException as error:
                return error.message(), time.perf_counter() - started
        np.testing.assert_allclose(answer, model.expected(given), rtol=1e-4, atol=1e-5)
        return "answered", time.perf_counter() - started

    with ThreadPoolExecutor(12) as threads:
        outcomes = list(threads.map(ask, range(12)))
    refused = [seconds for outcome, seconds in outcomes if "queue" in outcome]
    assert 0 < len(refused) < 12, outcomes
    assert len(refused) + [outcome for outcome, _ in outcomes].count("answered") == 12, outcomes
    assert max(refused) < 3


def test_a_new_version_takes_over_when_it_is_loaded(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "growing.onnx"
    options = _at(PackageOptions(backend="python"), served.repository)
    with served.connect("http") as client:
        for seed in (3, 4):
            onnx.save(small_model(batch="batch", seed=seed), path)
            (written,) = package([path], served.repository, options)
            client.raw.load_model("growing")
            given = items(served.model("two_versions"), 1, seed=seed)
            with na_deploy.load(path) as session:
                expected = session.run(given)["logits"]
            answer = client.infer("growing", {"image": given})
            assert answer.get_response()["model_version"] == str(written.version)
            np.testing.assert_allclose(answer.as_numpy("logits"), expected, rtol=1e-4, atol=1e-5)
        client.raw.unload_model("growing")


@pytest.mark.native
def test_triton_registers_the_operator_library_where_the_configuration_says(served: Served) -> None:
    assert onnxruntime_library() is not None
    library = served.repository / "onnx_free" / "libna_deploy_ort.so"
    assert read(served.repository / "onnx_free" / CONFIG).model_operations.op_library_filename == [str(library)]
    assert f"onnx_free registers {library}" in served.server.log.read_text()


WARM_UP = "{ data_type: TYPE_FP32 dims: [3, 32, 32] zero_data: true }"
BROKEN = {
    # What is cleared in a good configuration and put in, what the checks say, and what Triton does with it.
    "preferred batch above the largest": (
        "",
        "dynamic_batching { preferred_batch_size: 9 }",
        "above max_batch",
        "refuses",
    ),
    "preferred batch of zero": ("", "dynamic_batching { preferred_batch_size: 0 }", "impossible", "refuses"),
    "zero dimension": ("", 'input { name: "more" data_type: TYPE_FP32 dims: 0 }', "dimension of 0", "refuses"),
    "no element type": ("", 'input { name: "more" dims: 3 }', "no data_type", "refuses"),
    "another folder's name": ("", 'name: "someone_else"', "must agree", "refuses"),
    "no such backend": ("", 'backend: "tensorflow3"', "none that Triton ships", "refuses"),
    # Triton 2.51's answer to these two never comes, and it may end with a segmentation fault; so they are only checked.
    "file that is not there": ("", 'default_model_filename: "other.py"', "other.py", "breaks"),
    "GPUs of a CPU": ("instance_group", "instance_group { kind: KIND_CPU gpus: 0 }", "names GPUs", "refuses"),
    "platform of another backend": ("", 'platform: "tensorrt_plan"', "does not belong", "takes"),
    "warm-up of too large a batch": (
        "model_warmup",
        f'model_warmup {{ name: "w" batch_size: 99 inputs {{ key: "image" value {WARM_UP} }} }}',
        "above 8",
        "breaks",
    ),
    "warm-up of an unknown input": (
        "model_warmup",
        f'model_warmup {{ name: "w" batch_size: 1 inputs {{ key: "z" value {WARM_UP} }} }}',
        "which the model does not have",
        "refuses",
    ),
    "warm-up that is skipped": (
        "model_warmup",
        f'model_warmup {{ name: "w" batch_size: 0 inputs {{ key: "image" value {WARM_UP} }} }}',
        "skips it",
        "takes",
    ),
    "batching without batches": ("max_batch_size model_warmup", "dynamic_batching { }", "batches nothing", "takes"),
    "labels that are not there": (
        "",
        'output { name: "extra" data_type: TYPE_FP32 dims: 10 label_filename: "no.txt" }',
        "no.txt, which is not there",
        "refuses",
    ),
    "output the model lacks": (
        "",
        'output { name: "extra" data_type: TYPE_FP32 dims: 10 }',
        "not in the model",
        "takes",
    ),
    "version that is not there": (
        "version_policy",
        "version_policy { specific { versions: 7 } }",
        "version 7",
        "refuses",
    ),
    "operator library of another backend": (
        "",
        'model_operations { op_library_filename: "/no/lib.so" }',
        "for the onnxruntime backend",
        "takes",
    ),
    "CUDA graphs without TensorRT": ("", "optimization { cuda { graphs: true } }", "CUDA graphs", "takes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_checks_find_what_triton_refuses_and_what_it_lets_pass(served: Served, case: str) -> None:
    name = "broken_" + "".join(letter if letter.isalnum() else "_" for letter in case.lower())
    folder = served.repository / name
    cleared, change, phrase, outcome = BROKEN[case]
    shutil.copytree(served.repository / "python_free", folder)
    try:
        config = read(folder / CONFIG)
        config.name = name
        (folder / CONFIG).write_text(to_text(config))
        assert not [finding for finding in check_repository(served.repository) if finding.model == name]
        for field in cleared.split():
            config.ClearField(field)
        config.MergeFrom(parse(change))
        (folder / CONFIG).write_text(to_text(config))
        findings = [finding for finding in check_repository(served.repository) if finding.model == name]
        assert any(phrase in finding.text for finding in findings), findings
        with served.connect("http") as client:
            if outcome == "refuses":
                with pytest.raises(InferenceServerException):
                    client.raw.load_model(name)
            elif outcome == "takes":
                client.raw.load_model(name)
                client.raw.unload_model(name)
    finally:
        shutil.rmtree(folder)


def test_metrics_tell_queue_time_for_autoscaling(served: Served) -> None:
    with served.connect("http") as client:
        client.infer("python_free", {"image": items(served.model("python_free"), 1)})
    with urllib.request.urlopen(f"http://{served.server.metrics}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    for metric in (
        "nv_inference_queue_duration_us",
        "nv_inference_request_success",
        "nv_inference_pending_request_count",
    ):
        assert f'{metric}{{model="python_free"' in text


def test_the_client_notices_a_server_that_answers_wrongly(served: Served) -> None:
    right = served.model("python_free")
    wrong = ServedModel(
        right.name, right.input, right.item, right.output, lambda x: right.expected(x) + 1, right.largest_batch, True
    )
    with served.connect("http") as client, pytest.raises(AssertionError):
        next(check for check in CHECKS if check.__name__ == "answers_are_the_models_own")(client, wrong)
