"""A session says what a model takes, checks what it is given, and fails in one sentence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import na_deploy
from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime import native_libraries as native
from na_deploy.runtime.images.batches import run_in_batches

WriteModel = Callable[..., Path]


def image(batch: int = 1, size: int = 32, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 3, size, size)).astype(np.float32)


def sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    return text


def test_inputs_and_outputs_are_named_typed_and_shaped(write_model: WriteModel):
    with na_deploy.load(write_model(batch="batch")) as session:
        assert session.inputs == (TensorSpec("image", "float32", ("batch", 3, 32, 32)),)
        assert session.outputs == (TensorSpec("logits", "float32", ("batch", 10)),)
        assert session.backend == "onnxruntime"
        assert session.device == "CPU"


def test_an_array_and_a_dict_are_the_same_input(write_model: WriteModel):
    with na_deploy.load(write_model()) as session:
        logits = session.run(image())["logits"]
        assert logits.shape == (1, 10)
        assert np.array_equal(logits, session.run({"image": image()})["logits"])
        assert not np.array_equal(logits, session.run(image(seed=2))["logits"])


def test_only_the_outputs_asked_for_are_returned(write_model: WriteModel):
    with na_deploy.load(write_model()) as session:
        assert list(session.run(image(), outputs=["logits"])) == ["logits"]
        with pytest.raises(UsageError, match=r"no output named probabilities; it has logits"):
            session.run(image(), outputs=["probabilities"])


def test_metadata_is_what_the_exporter_wrote(write_model: WriteModel):
    metadata = ModelMetadata("nat_mini", num_classes=10, dilations=((1, 2),), source_name="nat_mini.pth")
    with na_deploy.load(write_model(properties=metadata.to_props())) as session:
        assert session.metadata == metadata


def test_a_model_from_elsewhere_has_no_metadata(write_model: WriteModel):
    with na_deploy.load(write_model(properties={"author": "someone"})) as session:
        assert session.metadata is None


def test_threads_of_onnxruntime_stop_after_a_run(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch):
    opened, given = onnxruntime.InferenceSession, []

    def remember(path: str, options: onnxruntime.SessionOptions, **more: object) -> onnxruntime.InferenceSession:
        given.append(options)
        return opened(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", remember)
    na_deploy.load(write_model()).close()
    assert {own.get_session_config_entry("session.force_spinning_stop") for own in given} == {"1"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"picture": image()}, "no input named picture; it expects image: float32 1×3×32×32"),
        ({}, "input image: float32 1×3×32×32 is missing"),
        (image().astype(np.float64), "has type float64, expected float32 of shape 1×3×32×32"),
        (image()[0], r"has 3 axes \(shape 3×32×32\), expected float32 of shape 1×3×32×32"),
        (image(size=28), "shape 1×3×28×28, expected float32 of shape 1×3×32×32: axis 2 is 28, not 32"),
        (image(batch=2), "shape 2×3×32×32, expected float32 of shape 1×3×32×32: axis 0 is 2, not 1"),
    ],
)
def test_a_wrong_input_is_told_what_was_expected(write_model: WriteModel, given: object, message: str):
    with na_deploy.load(write_model()) as session, pytest.raises(UsageError, match=message) as error:
        session.run(given)
    sentence(error)


def two_input_model(path: Path, element: int = TensorProto.FLOAT) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Concat", ["a", "b"], ["joined"], axis=1)],
        "two",
        [helper.make_tensor_value_info(name, element, ("n", 2)) for name in ("a", "b")],
        [helper.make_tensor_value_info("joined", element, ("n", 4))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_dimension_shared_by_inputs_must_agree(tmp_path: Path):
    with na_deploy.load(two_input_model(tmp_path / "two.onnx")) as session:
        three, four = (np.ones((rows, 2), np.float32) for rows in (3, 4))
        assert session.run({"a": three, "b": three})["joined"].shape == (3, 4)
        with pytest.raises(UsageError, match=r"input b has shape 4×2.*n is 4 here and 3 in a"):
            session.run({"a": three, "b": four})
        with pytest.raises(UsageError, match=r"the model has 2 inputs .*pass a dict"):
            session.run(three)


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path):
    a, b = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(ml_dtypes.bfloat16)
    with na_deploy.load(two_input_model(tmp_path / "two.onnx", TensorProto.BFLOAT16)) as session:
        joined = session.run({"a": a, "b": b})["joined"]
    assert joined.dtype == ml_dtypes.bfloat16
    assert np.array_equal(joined, np.concatenate([a, b], axis=1))


def test_a_closed_session_refuses_to_run(write_model: WriteModel):
    session = na_deploy.load(write_model())
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(image())


def test_threads_share_a_session(write_model: WriteModel):
    with na_deploy.load(write_model(), threads=1) as session:
        expected = [session.run(image(seed=seed))["logits"] for seed in range(8)]
        together = threading.Barrier(4)

        def work(seed: int) -> np.ndarray:
            if seed < 4:
                together.wait(timeout=30)
            return session.run(image(seed=seed))["logits"]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, range(8)))
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("content", [b"", b"not a model at all", bytes(range(256)) * 4, b"\x08\x0a\x12\x00"])
def test_a_file_that_is_no_model_is_refused_in_a_sentence(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(NaDeployError, match=r"broken\.onnx") as error:
        na_deploy.load(path)
    assert error.value.exit_code == 1
    sentence(error)


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.7, 0.999])
def test_a_truncated_model_is_refused_in_a_sentence(write_model: WriteModel, kept: float):
    path = write_model()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(NaDeployError, match=r"small\.onnx") as error:
        na_deploy.load(path)
    sentence(error)


def test_missing_weights_are_refused_in_a_sentence(write_model: WriteModel, tmp_path: Path):
    path = tmp_path / "large.onnx"
    onnx.save(onnx.load(write_model()), path, save_as_external_data=True, location="large.bin", size_threshold=100)
    (tmp_path / "large.bin").unlink()
    with pytest.raises(NaDeployError, match=r"large\.bin") as error:
        na_deploy.load(path)
    sentence(error)


def test_wrong_requests_are_refused(write_model: WriteModel, tmp_path: Path):
    path = write_model()
    with pytest.raises(UsageError, match="does not exist"):
        na_deploy.load(tmp_path / "absent.onnx")
    with pytest.raises(UsageError, match="is a folder"):
        na_deploy.load(tmp_path)
    with pytest.raises(UsageError, match="no backend 'caffe'; choose one of onnxruntime"):
        na_deploy.load(path, backend="caffe")
    with pytest.raises(UsageError, match="at least 1, got 0"):
        na_deploy.load(path, threads=0)
    with pytest.raises(UsageError, match=r"no provider AbacusExecutionProvider here; choose from .*CPU"):
        na_deploy.load(path, providers=["AbacusExecutionProvider"])
    with pytest.raises(UsageError, match="a list of names"):
        na_deploy.load(path, providers="CPUExecutionProvider")  # type: ignore[arg-type]


def test_cuda_graphs_are_refused_where_nothing_runs_on_cuda(write_model: WriteModel):
    path = write_model()
    with pytest.raises(UsageError, match=r"cuda_graphs is for CUDA.*, and onnxruntime is to run on .*CPU.*; remove"):
        na_deploy.load(path, cuda_graphs=2, providers=["CPUExecutionProvider"])
    for backend in ("openvino", "torch"):
        with pytest.raises(UsageError, match=f"engines on a GPU, not for {backend}; remove it"):
            na_deploy.load(path, backend, cuda_graphs=2)
    with na_deploy.load(path, cuda_graphs=0) as session:
        assert (session.cuda_graphs, session.graph_figures) == (0, [])


def test_a_gpu_that_onnxruntime_cannot_use_is_refused(write_model, monkeypatch: pytest.MonkeyPatch):
    path = write_model()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(UsageError, match=r"no provider CUDAExecutionProvider here; .* or install onnxruntime-gpu$"):
        na_deploy.load(path, providers=wanted)
    with pytest.raises(UsageError, match=r"device 0 is a GPU, .* on CPUExecutionProvider here; remove device, or"):
        na_deploy.load(path, device=0)


def test_without_onnxruntime_the_message_says_what_to_install(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch):
    path = write_model()
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="install onnxruntime"):
        na_deploy.load(path)


def test_a_model_runs_without_an_operator_library_that_cannot_be_loaded(
    write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    library = tmp_path / "libbroken.so"
    library.write_bytes(b"not a library")
    path = write_model()
    monkeypatch.setenv(native.ONNXRUNTIME_LIBRARY_VARIABLE, str(library))
    with pytest.warns(RuntimeWarning, match=r"refuses .*libbroken\.so.*runs on its embedded function bodies") as warned:
        session = na_deploy.load(path)
    assert "\n" not in str(warned[0].message)
    assert session.library is None
    assert session.run(image())["logits"].shape == (1, 10)
    assert na_deploy.load(path, custom_operators=False).run(image())["logits"].shape == (1, 10)
    monkeypatch.setenv(native.ONNXRUNTIME_LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    with pytest.raises(UsageError, match=r"absent\.so, which does not exist"):
        na_deploy.load(path)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_any_number_of_items_runs_through_any_batch_size(write_model: WriteModel, batch: int | str):
    items = np.concatenate([image(seed=seed) for seed in range(19)])
    with na_deploy.load(write_model("single.onnx")) as single:
        expected = np.concatenate([single.run(item[None])["logits"] for item in items])
    with na_deploy.load(write_model(batch=batch)) as session:
        found = run_in_batches(session, items)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_asynchronous_calls_give_what_calls_give(write_model: WriteModel):
    with na_deploy.load(write_model(), threads=1) as session:
        futures = [session.run_async(image(seed=seed)) for seed in range(12)]
        for seed, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(timeout=60)["logits"], session.run(image(seed=seed))["logits"])
        with pytest.raises(UsageError, match="has shape 1×3×16×16"):
            session.run_async(image(size=16))
        with pytest.raises(UsageError, match="no output named x"):
            session.run_async(image(), ["x"])
    with pytest.raises(UsageError, match="is closed"):
        session.run_async(image()).result(timeout=60)


def test_warming_up_needs_the_free_sizes_alone(write_model: WriteModel):
    with na_deploy.load(write_model()) as session:
        session.warm_up()
    with na_deploy.load(write_model(batch="batch")) as session:
        session.warm_up({"image": (3, 3, 32, 32)}, runs=1)
        with pytest.raises(UsageError, match="has free sizes; give a shape"):
            session.warm_up()
        with pytest.raises(UsageError, match="no input named picture"):
            session.warm_up({"image": (1, 3, 32, 32), "picture": (1,)})
        with pytest.raises(UsageError, match="expected float32"):
            session.warm_up({"image": (1, 3, 16, 16)})
