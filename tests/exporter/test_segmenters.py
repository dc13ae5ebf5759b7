"""Exported segmenters: the files that stock ONNX Runtime and TensorRT-RTX take, and how they are judged."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hugging_face_segmenters import CLASSES, KINDS, QUERIES, SMALLEST, image, outputs, segmenter
from onnx import numpy_helper
from rtx_engines import build_rtx_engine

from na_deploy import export
from na_deploy.cli.main import run
from na_deploy.errors import NaDeployError
from na_deploy.exporter import ExportReport
from na_deploy.exporter.verify_masks import judged, verify_with_masks
from na_deploy.model_file.inspection import inspect_model
from na_deploy.models import ModelMetadata, load_model

SIZE = (64, 96)
Exports = Callable[..., ExportReport]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Export a segmenter once for every set of options."""
    root = tmp_path_factory.mktemp("segmenters")

    @cache
    def exported(kind: str, **options: Any) -> ExportReport:
        folder = root / kind
        if not folder.exists():
            more = SMALLEST if kind in ("mask2former", "oneformer") else {}
            segmenter(kind, **more).save_pretrained(folder)  # type: ignore[operator]
        name = "_".join((kind, *options.values())).replace(",", "_")
        return export(folder, root / f"{name}.onnx", input=f"1x3x{SIZE[0]}x{SIZE[1]}", **options)

    return exported


def folder_of(report: ExportReport, kind: str) -> Path:
    return report.path.parent / kind


def run_stock(path: Path, images: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images.numpy()}), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_gives_transformers_answers_under_agreed_names(kind: str, exports: Exports) -> None:
    report = exports(kind)
    images = image(1, *SIZE)
    found = run_stock(report.path, images)
    more = SMALLEST if kind in ("mask2former", "oneformer") else {}
    wanted = outputs(segmenter(kind, **more), kind, images)
    height, width = SIZE
    if kind == "upernet":
        assert {name: x.shape for name, x in found.items()} == {"logits": (1, CLASSES, height, width)}
    else:
        assert {name: x.shape for name, x in found.items()} == {
            "class_logits": (1, QUERIES, CLASSES + 1),
            "mask_logits": (1, QUERIES, height // 4, width // 4),
        }
    for mine, right in zip(found.values(), wanted, strict=True):
        assert np.abs(mine - right.numpy()).max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_has_no_operator_that_tensorrt_lacks(kind: str, exports: Exports) -> None:
    model = onnx.load(exports(kind).path)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"NonZero", "ScatterND", "ScatterElements", "If", "Loop", "CumSum", "Einsum"}
    metadata = ModelMetadata.from_props({entry.key: entry.value for entry in model.metadata_props})
    assert metadata is not None
    assert (metadata.head, metadata.num_classes) == (kind, CLASSES)
    assert metadata.preprocessing.size == SIZE


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("upernet", ["backbone", "head"]),
        ("mask2former", ["backbone", "pixel decoder", "queries and masks"]),
    ],
)
def test_inspection_counts_the_work_of_every_part(kind: str, parts: list[str], exports: Exports) -> None:
    summary = inspect_model(exports(kind).path)
    assert list(summary.parts) == parts
    assert min(summary.parts.values()) > 0
    counted = summary.attention_multiply_adds + summary.other_multiply_adds
    assert (sum(summary.parts.values()), summary.uncounted) == (counted, 0)


@pytest.mark.parametrize("kind", ["upernet", pytest.param("mask2former", marks=pytest.mark.slow)])
def test_free_batch_and_sizes_follow_the_image(kind: str, exports: Exports) -> None:
    report = exports(kind, dynamic="batch,spatial")
    assert report.difference < 1e-4
    assert [case.input_shape[0] for case in report.cases] == [1, 1, 2]
    assert len({case.input_shape[2:] for case in report.cases}) == 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("upernet", {"dynamic": "batch,spatial"}),
        ("maskformer", {"dtype": "fp16"}),
        ("mask2former", {}),
        pytest.param("mask2former", {"dynamic": "batch,spatial"}, marks=pytest.mark.slow),
        ("oneformer", {"dtype": "fp16"}),
    ],
)
def test_tensorrt_rtx_builds_it(kind: str, options: dict[str, str], exports: Exports) -> None:
    report = exports(kind, **options)
    free = {"image": ((1, 3, 64, 64), (1, 3, *SIZE), (2, 3, 165, 241))}
    built = build_rtx_engine(report.path, free if "dynamic" in options else None)
    assert built.report.layers > 500
    assert built.engine_bytes > 0.9 * report.size


@pytest.mark.parametrize("kind", [pytest.param("upernet", marks=pytest.mark.slow), "maskformer", "oneformer"])
def test_half_precision_keeps_softmax_and_mask_products_in_float32(kind: str, exports: Exports) -> None:
    report = exports(kind, dtype="fp16")
    assert report.difference < 5e-3
    model = onnx.shape_inference.infer_shapes(onnx.load(report.path))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    widened = [node for node in model.graph.node if node.op_type in ("Softmax", "GridSample")]
    assert {types[node.output[0]] for node in widened} <= {onnx.TensorProto.FLOAT}
    weights = {numpy_helper.to_array(w).dtype for w in model.graph.initializer if len(w.dims) > 1}
    assert np.dtype(np.float16) in weights


def test_masks_that_fall_on_the_other_side_of_zero_are_told_and_judged_apart(exports: Exports, tmp_path: Path) -> None:
    """A bias is chosen so that a mask's own value is nearly zero; rounding may then decide it either way."""
    report = exports("mask2former")
    loaded = load_model(folder_of(report, "mask2former"))
    case = verify_with_masks(loaded.module, report.path, (1, 3, *SIZE))
    assert [difference.name for difference in case.differences][:2] == ["class_logits", "mask_logits"]
    assert case.differences[2].name.startswith("sem_seg_head.predictor.attention_masks.")
    assert case.worst < 1e-4
    assert "0 of" in case.remark
    edited = flipped(report.path, tmp_path / "flipped.onnx")
    plain = judged(loaded.module, edited, (1, 3, *SIZE), tolerance=10.0)
    assert (plain.remark, plain.worst > 1e-4) == ("", True)
    told = judged(loaded.module, edited, (1, 3, *SIZE), tolerance=1e-4)
    assert told.worst < 1e-4
    assert "of zero (relative)" in told.remark
    assert " 0 of" not in told.remark


def flipped(path: Path, target: Path) -> Path:
    """Write a copy whose first masks are cut a little beside zero: places nearest to it change sides."""
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.output[0].endswith("attention_masks.0"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(FLIP), "beside_zero"))
    node.input[1] = "beside_zero"
    onnx.save(model, target)
    return target


FLIP = 0.2


def test_a_wrong_weight_behind_the_masks_is_still_found(exports: Exports, tmp_path: Path) -> None:
    report = exports("mask2former")
    model = onnx.load(report.path)
    weight = next(w for w in model.graph.initializer if w.name.endswith("predictor.class_embed.bias"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.1), weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    loaded = load_model(folder_of(report, "mask2former"))
    case = judged(loaded.module, tmp_path / "wrong.onnx", (1, 3, *SIZE), tolerance=1e-4)
    assert case.worst > 1e-3
    assert case.worst_difference.name == "class_logits"


def test_a_file_without_named_masks_says_so(exports: Exports, tmp_path: Path) -> None:
    report = exports("mask2former")
    loaded = load_model(folder_of(report, "mask2former"))
    with pytest.raises(NaDeployError, match="names 0 attention masks, the network has 2; export it again"):
        verify_with_masks(loaded.module, exports("upernet").path, (1, 3, *SIZE))


def test_verify_compares_the_file_with_its_folder(exports: Exports, capfd: pytest.CaptureFixture[str]) -> None:
    report = exports("oneformer")
    assert run(["verify", str(folder_of(report, "oneformer")), str(report.path), "--json"]) == 0
    assert "OneFormer on dinat" in capfd.readouterr().out


def test_a_difference_just_above_the_tolerance_names_output_and_size(
    exports: Exports, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(exports("upernet"), "upernet")
    target = tmp_path / "model.onnx"
    arguments = ["export", str(folder), "-o", str(target), "--input", "1x3x64x96", "--tolerance", "1e-9"]
    assert run(arguments) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "its output logits differs" in said
    assert "for an input of 1x3x64x96, above the tolerance of 1e-09" in said
    assert not target.exists()


def test_the_command_exports_a_backbone_alone_when_asked(
    exports: Exports, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "upernet"
    shutil.copytree(folder_of(exports("upernet"), "upernet"), folder)
    target = tmp_path / "backbone.onnx"
    arguments = ["export", str(folder), "-o", str(target), "--part", "backbone", "--input", "1x3x64x64"]
    assert run(arguments) == 0
    assert "only the backbone of upernet is loaded; its UPerNet head is not" in capfd.readouterr().err
    assert [output.name for output in onnx.load(target).graph.output] == ["stage1", "stage2", "stage3", "stage4"]
