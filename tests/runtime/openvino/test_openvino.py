"""OpenVINO computes what ONNX Runtime does, in the precision that was asked for and no other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

import na_deploy
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.openvino import session as openvino_session

IMAGES = np.random.default_rng(3).standard_normal((2, 3, 32, 32), dtype=np.float32)


@pytest.fixture
def model(write_model: Callable[..., Path]) -> Path:
    return write_model("small.onnx", batch="batch", properties=ModelMetadata("nat_mini", num_classes=10).to_props())


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_it_agrees_with_onnx_runtime_and_describes_itself(model: Path):
    with na_deploy.load(model) as one, na_deploy.load(model, backend="openvino", threads=1) as other:
        assert relative(other.run(IMAGES)["logits"], one.run(IMAGES)["logits"]) < 1e-5
        assert (other.backend, other.precision, other.device) == ("openvino", "f32", "CPU (f32)")
        assert [str(spec) for spec in other.inputs] == ["image: float32 batch×3×32×32"]
        assert other.metadata == one.metadata
        with pytest.raises(UsageError, match="has type float64"):
            other.run(IMAGES.astype(np.float64))
        assert other.run(IMAGES[:0])["logits"].shape == (0, 10)


def test_bfloat16_is_used_when_asked_for_and_only_then(model: Path):
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(UsageError, match="no bfloat16 products"):
            na_deploy.load(model, backend="openvino", precision="bf16")
        return
    with na_deploy.load(model) as one, na_deploy.load(model, backend="openvino", precision="bf16") as other:
        gap = relative(other.run(IMAGES)["logits"], one.run(IMAGES)["logits"])
        assert other.precision == "bf16"
        assert 1e-5 < gap < 5e-2


def test_a_processor_without_bfloat16_is_told_instead_of_computing_in_float32():
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    with pytest.raises(UsageError, match=r"no bfloat16 products.*use precision f32"):
        openvino_session.check_precision("bf16", Core())


def test_callers_at_the_same_time_get_their_own_answers(model: Path):
    with na_deploy.load(model, backend="openvino", threads=2, streams=2) as session:
        assert session.streams == 2
        batches = [np.roll(IMAGES, shift, axis=-1) for shift in range(8)]
        alone = [session.run(batch)["logits"] for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                together = list(pool.map(lambda batch: session.run(batch)["logits"], batches))
                for found, expected in zip(together, alone, strict=True):
                    np.testing.assert_array_equal(found, expected)
        assert session.run_async(IMAGES).result()["logits"].shape == (2, 10)


def test_answers_stay_when_the_next_call_runs(model: Path):
    with na_deploy.load(model, backend="openvino") as session:
        first = session.run(IMAGES)["logits"]
        kept = first.copy()
        session.run(-IMAGES)
        np.testing.assert_array_equal(first, kept)


def test_compiled_models_are_kept_where_a_cache_is_given(model: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    with na_deploy.load(model, backend="openvino", cache=cache) as session:
        expected = session.run(IMAGES)["logits"]
    assert list(cache.glob("*.blob"))
    with na_deploy.load(model, backend="openvino", cache=cache) as session:
        np.testing.assert_array_equal(session.run(IMAGES)["logits"], expected)


def test_wrong_use_is_refused_in_a_sentence(model: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="precision must be f32 or bf16, got 'f16'"):
        na_deploy.load(model, backend="openvino", precision="f16")
    with pytest.raises(UsageError, match="precision is for the openvino backend, not for onnxruntime"):
        na_deploy.load(model, precision="bf16")
    with pytest.raises(UsageError, match="streams must be at least 1"):
        na_deploy.load(model, backend="openvino", streams=0)
    content = onnx.load(model)
    content.graph.node[-1].domain = "com.example"
    onnx.save(content, tmp_path / "foreign.onnx")
    with pytest.raises(NaDeployError, match=r"com\.example\.Gemm is no standard operator"):
        na_deploy.load(tmp_path / "foreign.onnx", backend="openvino")


def test_a_closed_session_says_so(model: Path):
    session = na_deploy.load(model, backend="openvino")
    session.close()
    session.close()
    with pytest.raises(UsageError, match="is closed"):
        session.run(IMAGES)
