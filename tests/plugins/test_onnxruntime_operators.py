"""The operator library in ONNX Runtime: right in every form, on any shape, from any thread, and clear when it refuses.

Models here are single nodes without a function body, so that only the library can run them, except where a test says
otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from node_models import (
    ELEMENTS,
    PACKED_CASES,
    SEPARATE_CASES,
    SMALL_MAPS,
    Arrays,
    expect_reference,
    node_model,
    normal,
    packed,
    separate,
)

import na_deploy
from na_deploy.attention.schema import PACKED_OPERATOR, SEPARATE_OPERATOR
from na_deploy.errors import NaDeployError
from na_deploy.models import ModelConfig, load_model, random_checkpoint
from na_deploy.runtime.native_libraries import onnxruntime_library

LIBRARY = onnxruntime_library()
pytestmark = pytest.mark.native


@pytest.fixture
def load_node(tmp_path: Path) -> Callable[..., Any]:
    """Load :func:`node_model` of the given arguments."""

    def load(*arguments: Any, threads: int = 2, **options: Any) -> Any:
        path = tmp_path / "node.onnx"
        onnx.save(node_model(*arguments, **options), path)
        session = na_deploy.load(path, threads=threads, providers=["CPUExecutionProvider"])
        assert session.library == LIBRARY
        return session

    return load


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", PACKED_CASES)
def test_the_packed_operator_is_right(load_node, case: str, dynamic: bool, dtype: str):
    sizes, attributes = PACKED_CASES[case]
    arrays = packed(*sizes, dtype=dtype)
    with load_node(PACKED_OPERATOR, arrays, dynamic, dtype=dtype, **attributes) as session:
        expect_reference(session.run(arrays), PACKED_OPERATOR, arrays, attributes, dtype)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", SEPARATE_CASES)
def test_the_separate_operator_is_right(load_node, case: str, dynamic: bool, dtype: str):
    sizes, attributes = SEPARATE_CASES[case]
    arrays = separate(*sizes, dtype=dtype)
    with load_node(SEPARATE_OPERATOR, arrays, dynamic, dtype=dtype, **attributes) as session:
        expect_reference(session.run(arrays), SEPARATE_OPERATOR, arrays, attributes, dtype)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", SMALL_MAPS)
def test_windows_reach_behind_small_maps_onto_padding(load_node, case: str, dynamic: bool, lse: bool, dtype: str):
    sizes, attributes = SMALL_MAPS[case]
    arrays = packed(*sizes, dtype=dtype)
    arrays["padding"] = normal(3, *sizes[2:4], dtype=dtype, seed=5)
    with load_node(PACKED_OPERATOR, arrays, dynamic, lse, dtype=dtype, **attributes) as session:
        expect_reference(session.run(arrays), PACKED_OPERATOR, arrays, attributes, dtype)


def test_one_session_takes_maps_smaller_and_larger_than_windows_from_many_threads(load_node):
    attributes = {"kernel_size": (7, 7), "dilation": (2, 2)}
    feeds = [packed(index % 3, (5 + 4 * index, 20), 2, 32, (7, 7)) for index in range(6)]
    for arrays in feeds:
        arrays["padding"] = normal(3, 2, 32, seed=9)
    with (
        load_node(PACKED_OPERATOR, feeds[0], True, threads=3, **attributes) as session,
        ThreadPoolExecutor(6) as pool,
    ):
        results = list(pool.map(lambda index: [session.run(feeds[index]) for _ in range(5)], range(6)))
    for arrays, outputs in zip(feeds, results, strict=True):
        for found in outputs:
            assert found["output"].shape == (*arrays["qkv"].shape[:3], 2, 32)
            if len(arrays["qkv"]):
                expect_reference(found, PACKED_OPERATOR, arrays, attributes, "float32")


def test_a_session_with_free_sizes_runs_any_batch_and_map(load_node):
    attributes = {"kernel_size": (5, 5)}
    with load_node(PACKED_OPERATOR, packed(2, (9, 9), 2, 16, (5, 5)), True, **attributes) as session:
        for batch, lengths in ((1, (5, 5)), (3, (17, 6)), (1, (40, 33)), (2, (9, 9))):
            arrays = packed(batch, lengths, 2, 16, (5, 5))
            expect_reference(session.run(arrays), PACKED_OPERATOR, arrays, attributes, "float32")


def test_a_single_value_stands_for_every_axis(load_node):
    arrays = packed(1, (9, 13), 2, 16)
    single = {"dilation": (2,), "stride": (3,), "is_causal": (1,)}
    with load_node(PACKED_OPERATOR, arrays, kernel_size=(4, 3), **single) as session:
        found = session.run(arrays)
    full = {name: value * 2 for name, value in single.items()}
    expect_reference(found, PACKED_OPERATOR, arrays, {"kernel_size": (4, 3), **full}, "float32")


@pytest.mark.parametrize("operator", [PACKED_OPERATOR, SEPARATE_OPERATOR])
def test_an_empty_batch_gives_an_empty_output(load_node, operator: str):
    arrays = packed(0, (9, 8), 2, 16) if operator == PACKED_OPERATOR else separate(0, (9, 8), (2, 2), (16, 24))
    with load_node(operator, arrays, True, kernel_size=(3, 3)) as session:
        found = session.run(arrays)
    assert found["output"].shape == (0, 9, 8, 2, 16 if operator == PACKED_OPERATOR else 24)
    assert found["lse"].shape == (0, 9, 8, 2)


@pytest.mark.parametrize("lse", [False, True])
def test_the_shape_of_the_output_is_known_before_running(load_node, lse: bool):
    with load_node(PACKED_OPERATOR, packed(2, (9, 8), 4, 16), True, lse, kernel_size=(3, 3)) as session:
        assert session.outputs[0].shape == ("batch", "length0", "length1", 4, 16)
    arrays = separate(2, (9, 8), (4, 2), (16, 24))
    with load_node(SEPARATE_OPERATOR, arrays, False, lse, kernel_size=(3, 3)) as session:
        assert session.outputs[0].shape == (2, 9, 8, 4, 24)
        assert len(session.outputs) == 1 + lse


def test_threads_share_a_session_and_its_thread_pool(load_node):
    attributes = {"kernel_size": (7, 7), "dilation": (2, 2)}
    feeds = [packed(1, (20 + index, 28), 2, 32, (7, 7)) for index in range(6)]
    with load_node(PACKED_OPERATOR, feeds[0], True, threads=3, **attributes) as session:
        together = threading.Barrier(6)

        def work(index: int) -> list[np.ndarray]:
            together.wait(timeout=60)
            return [session.run(feeds[index])["output"] for _ in range(5)]

        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(work, range(6)))
    for arrays, outputs in zip(feeds, results, strict=True):
        expect_reference({"output": outputs[0]}, PACKED_OPERATOR, arrays, attributes, "float32")
        assert all(np.array_equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_numbers(load_node, threads: int):
    arrays = packed(2, (30, 31), 3, 32, (7, 7))
    with load_node(PACKED_OPERATOR, arrays, threads=1, kernel_size=(7, 7)) as alone:
        expected = alone.run(arrays)["output"]
    with load_node(PACKED_OPERATOR, arrays, threads=threads, kernel_size=(7, 7)) as session:
        assert np.array_equal(session.run(arrays)["output"], expected)


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("operator", "declared", "given", "attributes", "message"),
    [
        (
            PACKED_OPERATOR,
            packed(1, (9, 9), 2, 8),
            packed(1, (9, 6), 2, 8),
            {"kernel_size": (3, 3), "dilation": (1, 3)},
            r"NeighborhoodAttentionQKV node 'layer3.attn': .*3\*3 = 9.* length 6 ",
        ),
        (
            PACKED_OPERATOR,
            {"qkv": normal(1, 9, 9, 3, 2, 8), "rel_pos_bias": normal(2, 5, 7)},
            None,
            {"kernel_size": (3, 3)},
            r"'layer3.attn': rel_pos_bias must be \(2, 5, 5\) for this kernel_size, got \(2, 5, 7\)",
        ),
        (
            PACKED_OPERATOR,
            {"qkv": normal(1, 9, 9, 2, 2, 8)},
            None,
            {"kernel_size": (3, 3)},
            r"qkv must be \(B, 2 spatial axes, 3, H, D\) for this kernel_size, got \(1, 9, 9, 2, 2, 8\)",
        ),
        (
            PACKED_OPERATOR,
            packed(1, (9, 4), 2, 8) | {"padding": normal(3, 2, 7)},
            None,
            {"kernel_size": (3, 5)},
            r"padding must be \(3, 2, 8\) for this qkv, got \(3, 2, 7\)",
        ),
        (
            SEPARATE_OPERATOR,
            separate(1, (9, 9), (3, 2), (8, 8)),
            None,
            {"kernel_size": (3, 3)},
            "query has 3 heads, which is not a multiple of key's 2",
        ),
        (
            SEPARATE_OPERATOR,
            separate(1, (9, 9), (2, 2), (8, 8)) | {"key": normal(1, 9, 9, 2, 7)},
            None,
            {"kernel_size": (3, 3)},
            r"key must be \(1, 9, 9, 2, 8\) to fit query, got \(1, 9, 9, 2, 7\)",
        ),
        (
            SEPARATE_OPERATOR,
            separate(1, (9, 9), (2, 2), (8, 8)) | {"value": normal(1, 9, 8, 2, 8)},
            None,
            {"kernel_size": (3, 3)},
            r"value must be \(1, 9, 9, 2, 8\) to fit query and key, got \(1, 9, 8, 2, 8\)",
        ),
        (
            SEPARATE_OPERATOR,
            separate(1, (9, 9), (2, 2), (8, 8)) | {"additional_key": normal(1, 4, 2, 8)},
            None,
            {"kernel_size": (3, 3)},
            "additional_key and additional_value come together, got only additional_key",
        ),
        (
            SEPARATE_OPERATOR,
            separate(2, (9, 9), (2, 2), (8, 8), 3) | {"additional_value": normal(2, 4, 2, 8)},
            None,
            {"kernel_size": (3, 3)},
            r"additional_value must be \(2, 3, 2, 8\) to fit query, key and value, got \(2, 4, 2, 8\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_told_what_was_expected(
    load_node, operator: str, declared: Arrays, given: Arrays | None, attributes: dict[str, Any], message: str
):
    with load_node(operator, declared, given is not None, **attributes) as session:
        with pytest.raises(NaDeployError, match=message) as error:
            session.run(declared if given is None else given)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "the attribute kernel_size is missing"),
        ({"kernel_size": (3, 3), "dilation": (2, 2, 2)}, r"dilation has 3 values \(2, 2, 2\) and kernel_size has 2"),
        ({"kernel_size": (3, 3, 3, 3)}, "kernel_size must have 1 to 3 values, one per spatial axis, got 4"),
        ({"kernel_size": (3, 3), "stride": 1.5}, "the attribute stride must be a list of integers"),
        ({"kernel_size": (3, 3), "scale": (0.5, 0.5)}, "the attribute scale must be a number"),
    ],
)
def test_attributes_that_cannot_be_are_refused_when_the_model_is_loaded(load_node, attributes: dict, message: str):
    with pytest.raises(NaDeployError, match=rf"NeighborhoodAttentionQKV node 'layer3.attn': {message}") as error:
        load_node(PACKED_OPERATOR, packed(1, (9, 9), 2, 8), **attributes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"kernel_size": (3, 0)}, "kernel_size.* 0"),
        ({"kernel_size": (3, 3), "dilation": (0, 1)}, "dilation.* 0"),
        ({"kernel_size": (3, 3), "stride": (1, 4)}, "stride.* 4"),
        ({"kernel_size": (3, 3), "stride": (-1, 1)}, "stride.* -1"),
        ({"kernel_size": (2**40, 3)}, "kernel_size.* 1099511627776"),
        ({"kernel_size": (3, 3), "dilation": (2**62, 1)}, "4611686018427387904"),
    ],
)
def test_attributes_out_of_range_are_refused_with_their_value(load_node, attributes: dict, message: str):
    with pytest.raises(NaDeployError, match=rf"NeighborhoodAttentionQKV node 'layer3.attn': .*{message}"):
        load_node(PACKED_OPERATOR, packed(1, (9, 9), 2, 8), **attributes)


# --------------------------------------------------------------------------- beside the function body


def test_a_model_with_function_bodies_runs_on_the_library_where_it_is_installed(write_model, tmp_path: Path):
    path = write_model(batch="batch")

    def kernels(custom: bool) -> set[str]:
        options = onnxruntime.SessionOptions()
        if custom:
            options.register_custom_ops_library(str(LIBRARY))
        options.optimized_model_filepath = str(tmp_path / f"optimized_{custom}.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}

    assert PACKED_OPERATOR in kernels(True)
    assert "Softmax" not in kernels(True)
    assert PACKED_OPERATOR not in kernels(False)

    images = np.random.default_rng(5).normal(size=(3, 3, 32, 32)).astype(np.float32)
    with na_deploy.load(path) as ours, na_deploy.load(path, custom_operators=False) as stock:
        assert ours.library == LIBRARY
        assert stock.library is None
        expected = stock.run(images)["logits"]
        np.testing.assert_allclose(ours.run(images)["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_exported_model_computes_the_same_on_small_maps_with_and_without_the_library(tmp_path: Path, dtype: str):
    config = ModelConfig(
        family="nat",
        embed_dim=32,
        depths=(1, 2),
        heads=(1, 2),
        kernel_size=5,
        dilations=((2,), (1, 3)),
        mlp_ratio=2.0,
        num_classes=10,
    )
    random_checkpoint(config, seed=0, path=tmp_path / "model.pth")
    loaded = load_model(tmp_path / "model.pth", arch="dinat", dilations="2/1,3")
    given = {"input": "1x3x64x64", "dynamic": "batch,spatial", "dtype": dtype}
    path = na_deploy.export(loaded, tmp_path / "model.onnx", **given).path
    random = np.random.default_rng(0)
    with na_deploy.load(path) as ours, na_deploy.load(path, custom_operators=False) as stock:
        assert ours.library == LIBRARY
        for size in ((1, 8, 8), (2, 33, 70), (1, 130, 24), (3, 128, 128)):
            image = random.standard_normal((size[0], 3, *size[1:])).astype(np.float32)
            with torch.inference_mode():
                expected = loaded.module(torch.from_numpy(image)).numpy()
            for session in (ours, stock):
                found = session.run(image)["logits"]
                assert np.abs(found - expected).max() < (1e-5 if dtype == "fp32" else 1e-2) * np.abs(expected).max()


def test_many_sessions_register_the_library(write_model):
    images = np.random.default_rng(5).normal(size=(1, 3, 32, 32)).astype(np.float32)
    path = write_model()
    sessions = [na_deploy.load(path) for _ in range(4)]
    sessions.pop(0).close()
    logits = [session.run(images)["logits"] for session in sessions]
    assert all(np.array_equal(logits[0], other) for other in logits[1:])


def test_on_a_gpu_a_library_without_gpu_kernels_stays_out_of_the_way(write_model, monkeypatch: pytest.MonkeyPatch):
    path = write_model()
    monkeypatch.setattr("na_deploy.runtime.backends.onnxruntime.gpu_capabilities", lambda library: "")
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, providers: session(*given, providers=providers[-1:])
    )
    assert na_deploy.load(path).library is None
    assert na_deploy.load(path, providers=["CPUExecutionProvider"]).library == LIBRARY
