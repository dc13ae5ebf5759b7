"""Exported detectors: the file that stock ONNX Runtime and TensorRT-RTX take, and how it is judged."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from mmdet_detectors import CLASSES, theirs
from onnx import numpy_helper
from PIL import Image
from rtx_engines import build_rtx_engine

import na_deploy
from na_deploy import export
from na_deploy.cli.main import run
from na_deploy.errors import NaDeployError
from na_deploy.exporter import ExportReport
from na_deploy.exporter.verify_detections import verify_detections
from na_deploy.model_file.flatten import flatten_file
from na_deploy.model_file.inspection import inspect_model
from na_deploy.models import LoadedModel, ModelMetadata, load_model
from na_deploy.models.detectors.rcnn import RCNN
from na_deploy.runtime.results.predict import Segmentation, image_preprocessing, prepare_picture, run_picture

SIZE = (96, 131)
ROWS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "detector.pth"
    torch.save(theirs("mask_rcnn").checkpoint(), path)
    return path


@pytest.fixture(scope="module")
def report(checkpoint: Path) -> ExportReport:
    return export(checkpoint, checkpoint.with_suffix(".onnx"), input=f"2x3x{SIZE[0]}x{SIZE[1]}")


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint)


def padded() -> torch.Tensor:
    """A whole picture and a smaller one with zeros right and below."""
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(4))
    images[1, :, 70:], images[1, :, :, 90:] = 0, 0
    return images


def run_stock(path: Path, images: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images.numpy()}), strict=True))


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


def test_the_file_gives_pytorch_s_detections_under_agreed_names(report: ExportReport, loaded: LoadedModel) -> None:
    images = padded()
    found = run_stock(report.path, images)
    assert {name: (x.dtype.name, x.shape) for name, x in found.items()} == {
        "boxes": ("float32", (2, ROWS, 4)),
        "scores": ("float32", (2, ROWS)),
        "classes": ("int64", (2, ROWS)),
        "masks": ("float32", (2, ROWS, 28, 28)),
        "count": ("int64", (2,)),
    }
    with torch.inference_mode():
        wanted = dict(zip(found, loaded.module(images), strict=True))
    for name, right in wanted.items():
        np.testing.assert_allclose(found[name], right.numpy(), rtol=1e-4, atol=1e-3, err_msg=name)
    assert found["count"].min() > 3
    assert found["boxes"][1, :, 0::2].max() <= 90
    assert found["boxes"][1, :, 1::2].max() <= 70


def test_the_graph_has_no_operator_that_tensorrt_rtx_lacks(report: ExportReport) -> None:
    model = onnx.load(report.path)
    found = set(operators(model.graph))
    assert not found & {"NonZero", "NonMaxSuppression", "RoiAlign", "ScatterND", "If", "CumSum", "Einsum", "Unique"}
    assert {name for name in found if "." in name} == {"na_deploy.NeighborhoodAttentionQKV"}
    metadata = ModelMetadata.from_props({entry.key: entry.value for entry in model.metadata_props})
    assert metadata is not None
    assert (metadata.task, metadata.head, metadata.num_classes) == ("detection", "mask_rcnn", CLASSES)
    assert metadata.thresholds == {"score": 0.3, "mask": 0.5}
    assert metadata.preprocessing.size == SIZE


def test_tensorrt_rtx_builds_it(report: ExportReport) -> None:
    built = build_rtx_engine(report.path)
    assert built.report.layers > 500
    assert built.engine_bytes > 0.5 * report.size


def test_a_flat_copy_detects_the_same(report: ExportReport, tmp_path: Path) -> None:
    flatten_file(report.path, tmp_path / "flat.onnx")
    assert not any("." in name for name in operators(onnx.load(tmp_path / "flat.onnx").graph))
    found, wanted = (run_stock(path, padded()) for path in (tmp_path / "flat.onnx", report.path))
    for name, right in wanted.items():
        np.testing.assert_allclose(found[name], right, rtol=1e-4, atol=1e-3, err_msg=name)


def test_every_step_is_compared_and_told(report: ExportReport) -> None:
    (case,) = report.cases
    names = [difference.name for difference in case.differences]
    assert {"rpn4.deltas", "proposals", "stage0.logits", "detections", "count", "masks"} <= set(names)
    assert case.worst < 1e-5
    assert case.remark == "compared step by step from the file's own values, 84 chosen rows as sets"


@pytest.mark.parametrize(
    ("name", "step"),
    [("rpn_head.rpn_reg.bias", "rpn0.deltas"), ("mask_head.conv_logits.bias", "masks")],
)
def test_a_wrong_weight_is_found_where_it_is(
    name: str, step: str, report: ExportReport, loaded: LoadedModel, tmp_path: Path
) -> None:
    model = onnx.load(report.path)
    (weight,) = (weight for weight in model.graph.initializer if weight.name.endswith(name))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.5), weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    case = verify_detections(loaded.module, tmp_path / "wrong.onnx", (2, 3, *SIZE), 1e-4)  # type: ignore[arg-type]
    assert next(difference.name for difference in case.differences if difference.relative > 1e-4) == step


@pytest.mark.parametrize("change", [{"score": 0.99}, {"most_overlap": 0.1}])
def test_another_choice_is_found(change: dict[str, float], report: ExportReport, loaded: LoadedModel) -> None:
    """The same network with another threshold chooses otherwise from equal maps."""
    config: Any = loaded.head
    other = RCNN(loaded.module.backbone, replace(config, **change)).eval()  # type: ignore[arg-type]
    other.load_state_dict(loaded.module.state_dict())
    case = verify_detections(other, report.path, (2, 3, *SIZE), 1e-4)
    assert "detections" in {difference.name for difference in case.differences if difference.relative > 1e-4}


def test_a_file_without_named_values_says_so(report: ExportReport, loaded: LoadedModel, tmp_path: Path) -> None:
    model = onnx.load(report.path)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["renamed" if name == "proposals" else name for name in names]
    onnx.save(model, tmp_path / "renamed.onnx")
    with pytest.raises(NaDeployError, match=r"renamed\.onnx does not name its proposals, .*; export it again"):
        verify_detections(loaded.module, tmp_path / "renamed.onnx", (2, 3, *SIZE), 1e-4)  # type: ignore[arg-type]


def test_verify_and_inspect_know_detectors(
    report: ExportReport, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(checkpoint), str(report.path), "--json"]) == 0
    assert "Mask R-CNN on dinat" in capfd.readouterr().out
    summary = inspect_model(report.path)
    assert list(summary.parts) == ["backbone", "pyramid", "proposals", "loops", "boxes", "masks"]
    assert summary.uncounted == 0


def test_a_session_answers_a_picture_with_the_file_s_detections(report: ExportReport) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (70, 150, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((300, 140))
    with na_deploy.load(report.path) as session:
        result = session.predict(picture, thresholds={"score": 0.0})
        preprocessing = image_preprocessing(session)
        outputs = run_picture(session, prepare_picture(session, picture, preprocessing))
    assert isinstance(result, Segmentation)
    count = int(outputs["count"][0])
    height, width = preprocessing.placement(140, 300).scaled
    boxes = outputs["boxes"][0, :count] * ([300 / width, 140 / height] * 2)
    boxes = np.clip(boxes, 0, [300, 140, 300, 140])
    seen = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    assert seen.sum() == len(result.segments) > 3
    order = np.argsort(-outputs["scores"][0, :count][seen], kind="stable")
    assert [segment.class_index for segment in result.segments] == outputs["classes"][0, :count][seen][order].tolist()
    for segment, (left, top, right, bottom) in zip(result.segments, boxes[seen][order], strict=True):
        np.testing.assert_allclose(segment.box, (left, top, right - left, bottom - top), atol=1e-3)
        rows, columns = result.crops[segment.id].place
        assert (rows.start, columns.start) == (int(top), int(left))
