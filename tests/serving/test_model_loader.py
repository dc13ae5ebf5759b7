"""Models are opened as the server was asked to: with its backend and precision, warmed up at their own sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from na_deploy.errors import UsageError
from na_deploy.models.metadata import ModelMetadata
from na_deploy.serving.model_loader import open_model
from na_deploy.serving.options import ServeOptions
from na_deploy.serving.sources import find_sources

WriteModel = Callable[..., Path]


@pytest.fixture
def model(write_model: WriteModel) -> Path:
    return write_model("small.onnx", batch="batch", properties=ModelMetadata("nat_mini", num_classes=10).to_props())


def test_models_run_on_the_backend_that_was_asked_for_and_share_runs(model: Path, caplog: pytest.LogCaptureFixture):
    openvino = pytest.importorskip("openvino")
    source = find_sources([model])["small"][1]
    precision = "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    caplog.set_level(logging.INFO, logger="na_deploy.serving")
    opened = open_model(source, ServeOptions(backend="openvino", precision=precision, threads=1))
    with opened.session as session:
        assert (session.backend, session.precision) == ("openvino", precision)
        assert session.outputs[0].shape == ("batch", 10)
    told = [record.getMessage() for record in caplog.records if "computes in bf16: outputs differ" in record.message]
    assert len(told) == (precision == "bf16")
    caplog.clear()
    with open_model(source, ServeOptions(backend="openvino", threads=1)).session as session:
        assert session.precision == "f32"
    assert "bf16" not in caplog.text


def test_cuda_graphs_are_asked_of_the_session(model: Path):
    source = find_sources([model])["small"][1]
    with pytest.raises(UsageError, match="cuda_graphs is for CUDA"):
        open_model(source, ServeOptions(cuda_graphs=2, threads=1))


def test_a_model_of_fixed_batch_is_warmed_up_and_one_of_unknown_sizes_is_not(
    model: Path, write_model: WriteModel, caplog: pytest.LogCaptureFixture
):
    fixed = find_sources([write_model("fixed.onnx", batch=3)])["fixed"][1]
    with open_model(fixed, ServeOptions(threads=1)).session:
        assert open_model(fixed, ServeOptions(threads=1)).max_batch == 0
    content = onnx.load(model)
    for axis in (2, 3):
        content.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    del content.metadata_props[:]
    onnx.save(content, model.with_name("free.onnx"))
    free = find_sources([model.with_name("free.onnx")])["free"][1]
    with open_model(free, ServeOptions(threads=1)).session:
        assert "free/1 has free sizes of unknown meaning, so it is not warmed up" in caplog.text
